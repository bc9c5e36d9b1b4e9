#include "cuffd_descriptor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

// The kernel's table of descriptors is as long as the highest number needs, eight bytes each, and every fork() copies it: 35 µs at this
// length.
enum { longest_table = 16384, shortest_table = 64 };

static int high(int fd) {
  struct rlimit limit;
  rlim_t end = getrlimit(RLIMIT_NOFILE, &limit) ? 0 : limit.rlim_cur;
  if (end > longest_table) end = longest_table;
  if (end < shortest_table) return -EMFILE;
  int made = fcntl(fd, F_DUPFD_CLOEXEC, (int)(end - end / 4));
  if (made < 0) made = fcntl(fd, F_DUPFD_CLOEXEC, (int)(end / 2));
  if (made < 0) made = fcntl(fd, F_DUPFD_CLOEXEC, (int)(end / 4));
  return made < 0 ? -errno : made;
}

int cuffd_raise(int fd) {
  if (fd < 0) return fd;
  int made = high(fd);
  if (made < 0) return fd;
  if (made < fd) {
    // It was opened among the high ones already.
    close(made);
    return fd;
  }
  close(fd);
  return made;
}

int cuffd_duplicate(int fd) {
  int made = high(fd);
  if (made < 0) made = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return made < 0 ? -errno : made;
}

int cuffd_identify(int fd, struct cuffd_identity *out) {
  struct stat found;
  if (fstat(fd, &found) < 0) return -errno;
  *out = (struct cuffd_identity){found.st_dev, found.st_ino};
  return 0;
}

int cuffd_is(int fd, struct cuffd_identity identity) {
  struct stat found;
  if (fd < 0) return 0;
  if (fstat(fd, &found) < 0) return 0;
  return found.st_dev == identity.device && found.st_ino == identity.inode;
}

int cuffd_may_be(int fd, struct cuffd_identity identity) {
  struct stat found;
  if (fd < 0) return 0;
  // A file system that has failed does not say: the number is open, and nothing speaks for another file.
  if (fstat(fd, &found) < 0) return errno != EBADF;
  return found.st_dev == identity.device && found.st_ino == identity.inode;
}

void cuffd_close_own(int fd, struct cuffd_identity identity) {
  if (cuffd_is(fd, identity)) close(fd);
}

static int signal_of(int mark) { return SIGRTMAX - mark % 31; }

int cuffd_mark(int fd, int mark) {
  int owner = getpid();
  return fcntl(fd, F_SETOWN, owner) < 0 || fcntl(fd, F_SETSIG, signal_of(mark)) < 0 ? -errno : owner;
}

int cuffd_seems_marked(int fd, int mark) { return fcntl(fd, F_GETSIG) == signal_of(mark); }

enum { quiet_mark = 23, tokens_end = 65536 };
static _Atomic uint32_t tokens[tokens_end];
static _Atomic uint32_t last_token;

uint32_t cuffd_mark_quietly(int fd) {
  if (fd < 0 || fd >= tokens_end || fcntl(fd, F_SETSIG, signal_of(quiet_mark)) < 0) return 0;
  uint32_t token = atomic_fetch_add(&last_token, 1) + 1;
  if (!token) token = atomic_fetch_add(&last_token, 1) + 1;
  atomic_store(&tokens[fd], token);
  return token;
}

int cuffd_seems_quietly_marked(int fd, uint32_t token) {
  return atomic_load_explicit(&tokens[fd], memory_order_acquire) == token && cuffd_seems_marked(fd, quiet_mark);
}

int cuffd_has_mark(int fd, struct cuffd_identity identity, int mark, int owner) {
  if (owner < 0) return cuffd_is(fd, identity);  // whoever forbids marks has made all alike
  return cuffd_is(fd, identity) && cuffd_seems_marked(fd, mark) && fcntl(fd, F_GETOWN) == owner;
}

int cuffd_same_file(int fd, int other) {
  pid_t self = getpid();
  long order = syscall(SYS_kcmp, self, self, KCMP_FILE, fd, other);
  return order < 0 ? -errno : order == 0;
}
