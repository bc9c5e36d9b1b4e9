#include "cuffd_secret.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cuffd_sys.h"

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447  // the same on every architecture
#endif

int cuffd_memfd_secret(void) {
  int error = cuffd_inject_here(cuffd_call_memfd_secret);
  if (error) return error;
  long fd = syscall(SYS_memfd_secret, O_CLOEXEC);
  return fd < 0 ? -errno : (int)fd;
}

int cuffd_lock_memory(uint64_t start, uint64_t length) {
  int error = cuffd_inject_here(cuffd_call_mlock);
  if (error) return error;
  return mlock((void *)(uintptr_t)start, length) < 0 ? -errno : 0;
}

void cuffd_wipe(void *bytes, size_t count) { explicit_bzero(bytes, count); }

int cuffd_random(void *bytes, size_t count) {
  for (size_t done = 0; done < count;) {
    ssize_t got = getrandom((char *)bytes + done, count - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -errno;
    done += (size_t)got;
  }
  return 0;
}
