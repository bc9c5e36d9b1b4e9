// Accesses, descriptors, limits and privileges.
#include "CTestSupport.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// Atomic, as tests race on bytes on purpose.
void ct_store(uint64_t address, uint8_t value) {
  __atomic_store_n((uint8_t *)(uintptr_t)address, value, __ATOMIC_RELAXED);
}
// Not through the thread sanitizer, which keeps a lock of its own while it makes such a store: the store may fault, and the fault be
// resolved in this thread by instrumented code.
__attribute__((disable_sanitizer_instrumentation)) void ct_store_in_order(uint64_t address, uint64_t value) {
  __atomic_store_n((uint64_t *)(uintptr_t)address, value, __ATOMIC_SEQ_CST);
}
uint8_t ct_load(uint64_t address) { return __atomic_load_n((uint8_t *)(uintptr_t)address, __ATOMIC_RELAXED); }

int ct_has_thread_sanitizer(void) {
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
  return 1;
#endif
#endif
  return 0;
}

int ct_has_sanitizer(void) {
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
  return 1;
#endif
#endif
  return ct_has_thread_sanitizer();
}

int ct_store_keeps_errno(uint64_t address, uint8_t value) {
  errno = 1234;
  ct_store(address, value);
  return errno == 1234;
}

void ct_spoil_errno(void) { errno = 77; }

int ct_store_keeps_registers(uint64_t address, uint8_t value) {
#if defined(__x86_64__)
  uint64_t before[2] = {0x1122334455667788u, 0x99aabbccddeeff00u}, after[2] = {0, 0};
  __asm__ volatile(
    "movdqu %[before], %%xmm7\n"
    "movb %[value], (%[address])\n"
    "movdqu %%xmm7, %[after]\n"
    : [after] "=m"(after)
    : [before] "m"(before), [value] "q"(value), [address] "r"(address)
    : "xmm7", "memory");
  return memcmp(before, after, sizeof before) == 0;
#else
  ct_store(address, value);
  return 1;
#endif
}

uint64_t ct_map_anonymous(uint64_t length, int shared) {
  void *address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | (shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);
  return address == MAP_FAILED ? 0 : (uint64_t)(uintptr_t)address;
}

// ---- descriptors and limits ----

static int is_userfaultfd(int fd) {
  char link[64], target[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, target, sizeof target - 1);
  if (length < 0) return 0;
  target[length] = 0;
  return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

static int highest(void) {
  // The numbers that are in use: one step is a system call.
  DIR *directory = opendir("/proc/self/fd");
  int last = 2;
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    int fd = atoi(entry->d_name);
    if (fd > last) last = fd;
  }
  if (directory) closedir(directory);
  return last + 1;
}

int ct_descriptor_count(void) {
  int count = 0;
  for (int fd = 0, end = highest(); fd < end; fd++) count += fcntl(fd, F_GETFD) >= 0;
  return count;
}

int ct_userfaultfd_count(void) {
  int count = 0;
  for (int fd = 0, end = highest(); fd < end; fd++) count += fcntl(fd, F_GETFD) >= 0 && is_userfaultfd(fd);
  return count;
}

int ct_first_userfaultfd(void) {
  for (int fd = 0, end = highest(); fd < end; fd++)
    if (fcntl(fd, F_GETFD) >= 0 && is_userfaultfd(fd)) return fd;
  return -1;
}

int ct_close_userfaultfds(int count, int highest_first) {
  int closed = 0, end = highest();
  for (int i = 0; i < end && closed < count; i++) {
    int fd = highest_first ? end - 1 - i : i;
    if (fcntl(fd, F_GETFD) >= 0 && is_userfaultfd(fd)) closed += close(fd) == 0;
  }
  return closed;
}

int ct_occupy(int fd) {
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null == fd) return fd;
  int result = dup2(null, fd);
  close(null);
  return result;
}

int ct_is_dev_null(int fd) {
  char link[64], target[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, target, sizeof target - 1);
  if (length < 0) return 0;
  target[length] = 0;
  return strcmp(target, "/dev/null") == 0;
}

static struct rlimit usual_files;

int ct_limit_files(int spare) {
  if (!usual_files.rlim_max && getrlimit(RLIMIT_NOFILE, &usual_files)) return -errno;
  // What counts is the number, not how many: everything below the new limit must be free `spare` times.
  rlim_t limit = 0;
  for (int unused = 0; unused < spare; limit++) unused += fcntl((int)limit, F_GETFD) < 0;
  struct rlimit lower = {.rlim_cur = limit, .rlim_max = usual_files.rlim_max};
  return setrlimit(RLIMIT_NOFILE, &lower) ? -errno : 0;
}

int ct_restore_file_limit(void) { return setrlimit(RLIMIT_NOFILE, &usual_files) ? -errno : 0; }

int ct_raise_file_limit(void) {
  struct rlimit limit = {.rlim_cur = 20000, .rlim_max = 20000};
  return setrlimit(RLIMIT_NOFILE, &limit) ? -errno : 0;
}

int ct_limit_address_space(uint64_t spare) {
  FILE *file = fopen("/proc/self/statm", "re");
  unsigned long pages = 0;
  if (!file || fscanf(file, "%lu", &pages) != 1) return -EIO;
  fclose(file);
  struct rlimit limit = {.rlim_cur = spare ? pages * 4096 + spare : RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
  return setrlimit(RLIMIT_AS, &limit) ? -errno : 0;
}

int ct_allow_threads(int allowed) {
  // Of root nothing is asked.
  if (geteuid() == 0 && setresuid(65534, 65534, 65534)) return -errno;
  prctl(PR_SET_DUMPABLE, 1);
  struct rlimit limit;
  if (getrlimit(RLIMIT_NPROC, &limit)) return -errno;
  limit.rlim_cur = allowed ? limit.rlim_max : 0;
  return setrlimit(RLIMIT_NPROC, &limit) ? -errno : 0;
}

int ct_limit_locked_memory(uint64_t bytes) {
  struct rlimit limit = {.rlim_cur = bytes, .rlim_max = bytes};
  return setrlimit(RLIMIT_MEMLOCK, &limit) ? -errno : 0;
}

long ct_read_of_process(pid_t process, uint64_t address, void *target, uint64_t count) {
  struct iovec local = {target, count}, remote = {(void *)(uintptr_t)address, count};
  long got = process_vm_readv(process, &local, 1, &remote, 1, 0);
  return got < 0 ? -errno : got;
}

int ct_mapping_count(void) {
  FILE *file = fopen("/proc/self/maps", "re");
  if (!file) return -errno;
  int count = 0, byte;
  while ((byte = getc(file)) != EOF) count += byte == '\n';
  fclose(file);
  return count;
}

// ---- privileges ----

#if defined(__x86_64__)
#define THIS_ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define THIS_ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

int ct_forbid_userfaultfd(void) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_ARCHITECTURE, 0, 5),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 4, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 2),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xAA00, 1, 0),  // USERFAULTFD_IOC_NEW
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
  };
  struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -errno;
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ? -errno : 0;
}

int ct_forbid_io_uring(void) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -errno;
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ? -errno : 0;
}

int ct_forbid_memory_copies(void) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 1, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_writev, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -errno;
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ? -errno : 0;
}

int ct_become_nobody(void) {
  if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534)) return -errno;
  return 0;
}

int ct_write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  size_t length = strlen(text);
  int result = write(fd, text, length) == (ssize_t)length ? 0 : -errno;
  close(fd);
  return result;
}

int ct_may_write(const char *path) { return access(path, W_OK) == 0; }

void ct_store_word(uint64_t address, uint64_t value) {
  __atomic_store_n((uint64_t *)(uintptr_t)address, value, __ATOMIC_RELAXED);
}

uint64_t ct_load_word(uint64_t address) {
  return __atomic_load_n((const uint64_t *)(uintptr_t)address, __ATOMIC_RELAXED);
}

uint64_t ct_map_sealed(uint64_t length) {
  int fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return 0;
  void *memory = MAP_FAILED;
  if (!ftruncate(fd, (off_t)length)) memory = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory != MAP_FAILED && fcntl(fd, F_ADD_SEALS, 0x10 /* F_SEAL_FUTURE_WRITE */)) {
    munmap(memory, length);
    memory = MAP_FAILED;
  }
  close(fd);
  return memory == MAP_FAILED ? 0 : (uint64_t)memory;
}
