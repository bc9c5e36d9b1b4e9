// A program that closes what it did not open, and locks itself in.
#include "CTestSupport.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char **environ;

enum { most = 512, file_size = 65536 };
static struct { int fd; ino_t inode; } seized[most];
static int seized_count;

// The test harness talks through a number that it says in its environment: it must stay.
static int is_harness(int fd) {
  for (char **entry = environ; *entry; entry++) {
    char *value = strchr(*entry, '='), *end;
    if (strncmp(*entry, "SWT_", 4) || !value) continue;
    long number = strtol(value + 1, &end, 10);
    if (end != value + 1 && !*end && number == fd) return 1;
  }
  return 0;
}

static int limit(void) {
  struct rlimit value;
  return getrlimit(RLIMIT_NOFILE, &value) ? 1024 : value.rlim_cur > 65536 ? 65536 : (int)value.rlim_cur;
}

static void fill(unsigned char *bytes, int fd) { memset(bytes, 0x40 + fd % 64, file_size); }

static int open_own(int fd) {
  int file = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) file = (int)syscall(SYS_memfd_create, "own", 1);
  unsigned char bytes[file_size];
  fill(bytes, fd);
  if (file < 0 || pwrite(file, bytes, sizeof bytes, 0) != sizeof bytes) return -1;
  if (file != fd) {
    if (dup3(file, fd, O_CLOEXEC) != fd) return -1;
    close(file);
  }
  struct stat found;
  if (fstat(fd, &found) || seized_count == most) return -1;
  seized[seized_count].fd = fd;
  seized[seized_count++].inode = found.st_ino;
  return 0;
}

int ct_seize_descriptors(int first, int last, const char *kind) {
  int numbers[most], count = 0, end = limit();
  if (last >= end) last = end - 1;
  for (int fd = first; fd <= last && count < most; fd++) {
    if (fcntl(fd, F_GETFD) < 0 || is_harness(fd)) continue;
    char link[64], target[256];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    target[length < 0 ? 0 : length] = 0;
    if (*kind && !strstr(target, kind)) continue;
    // The runtime of the tests waits with these, and dies without.
    if (fd < 256 && (strstr(target, "[event") || strstr(target, "[timerfd"))) continue;
    numbers[count++] = fd;
  }
  // At once, without a moment in which the number is free: what PinKit opens to repair the first loss would lie there, and be lost too.
  for (int i = 0; i < count; i++)
    if (open_own(numbers[i])) return -errno;
  return count;
}

int ct_check_seized(void) {
  static unsigned char expected[file_size], found[file_size + 1];
  for (int i = 0; i < seized_count; i++) {
    struct stat now;
    int fd = seized[i].fd;
    fill(expected, fd);
    if (fstat(fd, &now) || now.st_ino != seized[i].inode || now.st_size != file_size) return fd;
    if (lseek(fd, 0, SEEK_CUR) != 0 || pread(fd, found, sizeof found, 0) != file_size) return fd;
    if (memcmp(expected, found, file_size)) return fd;
  }
  return 0;
}

int ct_low_descriptors_of(const char *kind, int below) {
  int count = 0;
  for (int fd = 3; fd < below; fd++) {
    char link[64], target[256];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0) continue;
    target[length] = 0;
    count += strstr(target, kind) != NULL;
  }
  return count;
}

static int filter(int first, int second, unsigned action) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)first, 1, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)second, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, action),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -errno;
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ? -errno : 0;
}

int ct_forbid_kcmp(void) { return filter(SYS_kcmp, SYS_kcmp, SECCOMP_RET_ERRNO | EPERM); }
int ct_forbid_membarrier(void) { return filter(SYS_membarrier, SYS_membarrier, SECCOMP_RET_ERRNO | EPERM); }
int ct_die_of_kcmp(void) { return filter(SYS_kcmp, SYS_kcmp, SECCOMP_RET_KILL_PROCESS); }
int ct_fail_fstat(void) { return filter(SYS_newfstatat, SYS_fstat, SECCOMP_RET_ERRNO | EIO); }

int ct_enter_jail(const char *directory) {
  return chroot(directory) || chdir("/") ? -errno : 0;
}

int ct_own_mounts(void) {
  return unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ? -errno : 0;
}

int ct_cover_proc(void) { return mount("tmpfs", "/proc", "tmpfs", 0, NULL) ? -errno : 0; }

int ct_userfaultfd_count_by_ioctl(void) {
  int count = 0;
  for (int fd = 3, end = limit(); fd < end; fd++) {
    struct uffdio_range page = {(uint64_t)(uintptr_t)&count & ~(uint64_t)4095, 4096};
    if (fcntl(fd, F_GETFD) >= 0 && ioctl(fd, UFFDIO_WAKE, &page) == 0) count++;
  }
  return count;
}
