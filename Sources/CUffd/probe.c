#include "cuffd_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuffd_uapi.h"

// Runs in the child of a process with many threads: raw system calls and nothing else.
static long attempt(int probe) {
  struct io_uring_params parameters;
  switch (probe) {
    case cuffd_probe_userfaultfd: return syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    case cuffd_probe_user_mode_userfaultfd:
      return syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    case cuffd_probe_memfd: return syscall(SYS_memfd_create, "probe", cuffd_memfd_close_on_exec);
    case cuffd_probe_io_uring:
      memset(&parameters, 0, sizeof parameters);
      return syscall(SYS_io_uring_setup, 1, &parameters);
    case cuffd_probe_membarrier: return syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    default: errno = EINVAL; return -1;
  }
}

int cuffd_probe_in_child(int probe, int *out) {
  // No exit signal: the program's SIGCHLD handler and its waitpid(-1) never see this child.
  pid_t child = (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0);
  if (child == 0) {
    signal(SIGSYS, SIG_DFL);
    syscall(SYS_exit_group, attempt(probe) < 0 ? errno : 0);
  }
  *out = -1;
  if (child < 0) return -errno;
  int status;
  while (waitpid(child, &status, __WALL) < 0)
    if (errno != EINTR) return -errno;
  *out = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  return WIFSIGNALED(status) ? -EPERM : -WEXITSTATUS(status);
}

int cuffd_probe_membarrier_expedited(void) {
  long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
  if (commands < 0) return -errno;
  return commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED ? 0 : -EINVAL;
}

uint32_t cuffd_effective_user(void) { return geteuid(); }

static int limit(int resource, uint64_t *soft, uint64_t *hard) {
  struct rlimit value;
  if (getrlimit(resource, &value) < 0) return -errno;
  *soft = value.rlim_cur;
  *hard = value.rlim_max;
  return 0;
}

int cuffd_limit_descriptors(uint64_t *soft, uint64_t *hard) { return limit(RLIMIT_NOFILE, soft, hard); }
int cuffd_limit_locked_memory(uint64_t *soft, uint64_t *hard) { return limit(RLIMIT_MEMLOCK, soft, hard); }

int cuffd_kernel_release(char *out, int capacity) {
  struct utsname name;
  if (uname(&name) < 0) return -errno;
  snprintf(out, (size_t)capacity, "%s", name.release);
  return 0;
}

const char *cuffd_temporary_directory(void) {
  const char *directory = getenv("TMPDIR");
  return directory && *directory ? directory : "/tmp";
}

int cuffd_temporary_file(const char *directory) {
  int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0) return fd;
  char path[4096];
  if (snprintf(path, sizeof path, "%s/pinkit.XXXXXX", directory) >= (int)sizeof path) return -ENAMETOOLONG;
  fd = mkostemp(path, O_CLOEXEC);
  if (fd < 0) return -errno;
  unlink(path);
  return fd;
}

int cuffd_file_system_type(int fd, uint64_t *out) {
  struct statfs info;
  if (fstatfs(fd, &info) < 0) return -errno;
  *out = (uint64_t)info.f_type & 0xffffffff;
  return 0;
}

int cuffd_allocate(int fd, int64_t offset, int64_t length) { return fallocate(fd, 0, offset, length) < 0 ? -errno : 0; }

int cuffd_punch_hole(int fd, int64_t offset, int64_t length) {
  return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) < 0 ? -errno : 0;
}
