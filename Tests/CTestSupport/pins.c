#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "CTestSupport.h"

int ct_memfd(const char *name) {
  int fd = memfd_create(name, MFD_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

int ct_memfd_secret(void) {
  int fd = (int)syscall(447, 0);
  return fd < 0 ? -errno : fd;
}

int ct_open_direct(const char *path) {
  int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
  return fd < 0 ? -errno : fd;
}

ssize_t ct_move_pinned(uint64_t address, void *other, size_t length, int writes) {
  struct iovec local = {other, length};
  struct iovec remote = {(void *)address, length};
  ssize_t moved = writes ? process_vm_writev(getpid(), &local, 1, &remote, 1, 0)
                         : process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
  return moved < 0 ? -errno : moved;
}

static long faults(void) {
  struct rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

int ct_store_faults(uint64_t address, uint8_t value) {
  faults();
  long before = faults();
  *(volatile uint8_t *)address = value;
  return (int)(faults() - before);
}

// ---- a child whose memory is known ----

static char *map(size_t length, int flags, int fd) {
  return mmap(0, length, PROT_READ | PROT_WRITE, flags | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
}

static void live(int file, struct ct_known *known) {
  enum { page = 4096 };
  char *small = map(64 * page, MAP_PRIVATE, -1);
  madvise(small, 64 * page, MADV_NOHUGEPAGE);
  for (int i = 0; i < 32; i += 2) small[i * page] = 1;
  known->small = (uint64_t)small;

  char *files = map(16 * page, MAP_SHARED, file);
  for (int i = 0; i < 8; i++) (void)*(volatile char *)(files + i * page);
  for (int i = 0; i < 4; i++) files[i * page] = 2;
  known->file = (uint64_t)files;

  char *huge = map(4 << 20, MAP_PRIVATE, -1);
  huge = (char *)(((uintptr_t)huge + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
  madvise(huge, 2 << 20, MADV_HUGEPAGE);
  huge[0] = 3;
  known->huge = (uint64_t)huge;

  int memory = memfd_create("known", MFD_CLOEXEC);
  if (ftruncate(memory, 8 * page)) _exit(9);
  char *twice = map(8 * page, MAP_SHARED, memory), *again = map(8 * page, MAP_SHARED, memory);
  for (int i = 0; i < 6; i++) twice[i * page] = 4;
  for (int i = 0; i < 4; i++) again[i * page] = 5;
  madvise(again + 4 * page, 4 * page, MADV_DONTNEED);
  known->twice = (uint64_t)twice;

  known->sparse = (uint64_t)map((size_t)1 << 40, MAP_PRIVATE | MAP_NORESERVE, -1);
  madvise((char *)known->sparse, (size_t)1 << 40, MADV_NOHUGEPAGE);
  ((char *)known->sparse)[(size_t)1 << 39] = 6;

  char *guarded = map(8 * page, MAP_PRIVATE, -1);
  madvise(guarded, 8 * page, MADV_NOHUGEPAGE);
  memset(guarded, 7, 8 * page);
  known->guarded = (uint64_t)guarded;
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  // Unprivileged: faults of user mode only (UFFD_USER_MODE_ONLY).
  if (fd < 0) fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1);
  struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
  struct uffdio_register range = {.range = {known->guarded, 8 * page}, .mode = UFFDIO_REGISTER_MODE_WP};
  struct uffdio_writeprotect protect = {.range = {known->guarded, 4 * page}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
  known->is_guarded = fd >= 0 && !ioctl(fd, UFFDIO_API, &api) && !ioctl(fd, UFFDIO_REGISTER, &range) &&
                      !ioctl(fd, UFFDIO_WRITEPROTECT, &protect);
}

pid_t ct_start_known(int file, struct ct_known *known) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return -errno;
  pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "known (odd) x");
    struct ct_known made;
    live(file, &made);
    if (write(ends[1], &made, sizeof made) != sizeof made) _exit(9);
    for (;;) pause();
  }
  close(ends[1]);
  ssize_t got = read(ends[0], known, sizeof *known);
  close(ends[0]);
  return got == sizeof *known ? child : -1;
}

int ct_show_in_proc(void) { return prctl(PR_SET_DUMPABLE, 1) ? -errno : 0; }

void ct_end(pid_t child) {
  kill(child, SIGKILL);
  ct_wait(child);
}
