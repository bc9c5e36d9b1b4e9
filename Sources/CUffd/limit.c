#include "cuffd_limit.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "cuffd_sys.h"

struct held {
  sigset_t mask;
  uint64_t was_pending;
};
_Static_assert(sizeof(struct held) == 136, "cuffd_limit.h says so");

static sigset_t only_xfsz(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGXFSZ);
  return set;
}

static int is_pending(void) {
  sigset_t pending;
  return sigpending(&pending) == 0 && sigismember(&pending, SIGXFSZ) == 1;
}

// The signal is blocked, and waits for this thread.
static void take(void) {
  sigset_t set = only_xfsz();
  struct timespec now = {0, 0};
  while (sigtimedwait(&set, NULL, &now) < 0 && errno == EINTR);
}

void cuffd_xfsz_hold(void *state) {
  struct held *held = state;
  sigset_t set = only_xfsz();
  pthread_sigmask(SIG_BLOCK, &set, &held->mask);
  held->was_pending = (uint64_t)is_pending();
}

void cuffd_xfsz_release(const void *state, int came) {
  const struct held *held = state;
  if (came && !held->was_pending) take();
  pthread_sigmask(SIG_SETMASK, &held->mask, NULL);
}

int cuffd_xfsz_is_limited(void) {
  struct rlimit limit;
  return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

int cuffd_resize(int fd, int64_t size) {
  if (!cuffd_xfsz_is_limited()) return ftruncate(fd, size) < 0 ? -errno : 0;
  struct held held;
  cuffd_xfsz_hold(&held);
  int result = ftruncate(fd, size) < 0 ? -errno : 0;
  cuffd_xfsz_release(&held, result == -EFBIG);
  return result;
}

ssize_t cuffd_pwrite(int fd, const void *buffer, size_t length, int64_t offset) {
  int error = cuffd_inject_here(cuffd_call_pwrite);
  if (error) return error;
  struct held held;
  int limited = cuffd_xfsz_is_limited();
  if (limited) cuffd_xfsz_hold(&held);
  ssize_t done = pwrite(fd, buffer, length, offset);
  if (done < 0) done = -errno;
  if (limited) cuffd_xfsz_release(&held, done == -EFBIG);
  return done;
}

ssize_t cuffd_pwrite_quietly(int fd, const void *buffer, size_t length, int64_t offset) {
  int error = cuffd_inject_here(cuffd_call_pwrite);
  if (error) return error;
  ssize_t done = pwrite(fd, buffer, length, offset);
  if (done >= 0) return done;
  error = -errno;
  // If the program blocks the signal as well, and one waited for this thread, it goes with this one: looking first would cost every write.
  if (error == -EFBIG) take();
  return error;
}
