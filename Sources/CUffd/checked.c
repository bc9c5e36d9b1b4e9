#include "cuffd_checked.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cuffd_descriptor.h"
#include "cuffd_fault.h"
#include "cuffd_sys.h"

static atomic_int prepared;
// From the calls it changes once, to one of the others: who still goes by the calls may be refused, and then sees which.
static atomic_int way;
// /proc/self/mem, and what it was when it was opened: other code may have closed the number since, and have it now.
static atomic_int memory = -1;
static struct cuffd_identity identity;
static pid_t process;

// The raw call: the thread sanitizer would take the copy for an access.
static ssize_t call(long number, void *local, void *remote, size_t length) {
  struct iovec here = {local, length}, there = {remote, length};
  ssize_t done = syscall(number, getpid(), &here, 1UL, &there, 1UL, 0UL);
  return done < 0 ? -errno : done;
}

static int is_forbidden(ssize_t result) { return result == -EPERM || result == -ENOSYS || result == -EACCES; }

static int open_memory(void) {
  int fd = cuffd_raise(open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
  if (fd < 0) return -1;
  if (cuffd_identify(fd, &identity) < 0) {
    close(fd);
    return -1;
  }
  process = getpid();
  return fd;
}

int cuffd_checked_prepare(void) {
  if (!atomic_load_explicit(&prepared, memory_order_acquire)) {
    // A child that was forked in between would keep a descriptor of the parent's memory. It keeps other threads out, too.
    cuffd_fork_hold();
    if (!atomic_load(&prepared)) {
      uint64_t from = 1, to = 0;
      int is_allowed = !is_forbidden(call(SYS_process_vm_writev, &from, &to, sizeof to));
      int fd = open_memory();
      atomic_store(&memory, fd);
      atomic_store(&way, is_allowed ? cuffd_checked_calls : fd >= 0 ? cuffd_checked_file : cuffd_checked_nothing);
      atomic_store_explicit(&prepared, 1, memory_order_release);
    }
    cuffd_fork_allow();
  }
  return atomic_load(&way);
}

static int is_memory(int fd) { return process == getpid() && cuffd_is(fd, identity); }

void cuffd_checked_forget(void) {
  cuffd_close_own(atomic_load(&memory), identity);
  atomic_store(&memory, -1);
  atomic_store(&way, cuffd_checked_calls);
  atomic_store(&prepared, 0);
}

// A filter that was installed since forbids the calls.
static void stop_calling(void) {
  int expected = cuffd_checked_calls;
  int next = is_memory(atomic_load(&memory)) ? cuffd_checked_file : cuffd_checked_nothing;
  atomic_compare_exchange_strong(&way, &expected, next);
}

static ssize_t read_file(void *target, const void *source, size_t length) {
  int fd = atomic_load(&memory);
  if (!is_memory(fd)) {
    // Nothing is left that would answer with an error.
    cuffd_copy_bytes(target, source, length);
    return (ssize_t)length;
  }
  size_t at = 0;
  while (at < length) {
    ssize_t got = pread(fd, (char *)target + at, length - at, (off_t)((uintptr_t)source + at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return at ? (ssize_t)at : got < 0 && errno == ENOMEM ? -ENOMEM : -EFAULT;
    at += (size_t)got;
  }
  return (ssize_t)length;
}

ssize_t cuffd_checked_read(void *target, const void *source, size_t length) {
  if (atomic_load_explicit(&way, memory_order_relaxed) == cuffd_checked_calls) {
    // The kernel takes hold of the target's pages and reads the source as a program would. That way round the cost is in the target, where
    // a huge page is one; and memory that nobody may take hold of, as memfd_secret's, can be read all the same.
    ssize_t done = call(SYS_process_vm_writev, (void *)(uintptr_t)source, target, length);
    // A target that cannot be taken hold of, as a device's.
    if (done == -EFAULT) done = call(SYS_process_vm_readv, target, (void *)(uintptr_t)source, length);
    if (!is_forbidden(done)) return done;
    stop_calling();
  }
  if (atomic_load(&way) == cuffd_checked_file) return read_file(target, source, length);
  cuffd_copy_bytes(target, source, length);
  return (ssize_t)length;
}

ssize_t cuffd_checked_write(void *target, const void *source, size_t length) {
  if (atomic_load_explicit(&way, memory_order_relaxed) != cuffd_checked_calls) return -ENOSYS;
  // This way round the kernel takes hold of the source, and writes the target as a program would. A call that took hold of the target could write
  // it after it was protected again, and nobody would hear of that.
  ssize_t done = call(SYS_process_vm_readv, target, (void *)(uintptr_t)source, length);
  if (!is_forbidden(done)) return done;
  stop_calling();
  return -ENOSYS;
}

ssize_t cuffd_checked_through(void *target, const void *source, size_t length) {
  char page[4096];
  ssize_t got = cuffd_checked_read(page, source, length < sizeof page ? length : sizeof page);
  return got > 0 ? cuffd_checked_write(target, page, (size_t)got) : got;
}

int cuffd_checked_heads(const void *start, size_t page_size, int count, uint64_t *bits) {
  uint64_t heads[64];
  struct iovec pages[64];
  if (count > 64) count = 64;
  *bits = 0;
  int seen = 0;
  if (atomic_load_explicit(&way, memory_order_relaxed) == cuffd_checked_calls) {
    for (int i = 0; i < count; i++) {
      // Most pages show at once that they are not zeros, and are copied next.
      pages[i] = (struct iovec){(char *)(uintptr_t)start + (size_t)i * page_size, 8};
    }
    struct iovec there = {heads, (size_t)count * 8};
    ssize_t done = syscall(SYS_process_vm_writev, getpid(), pages, (unsigned long)count, &there, 1UL, 0UL);
    if (done >= 0) seen = (int)(done / 8);
    else if (!is_forbidden(-errno)) return -errno;
    else stop_calling();
  }
  if (atomic_load(&way) != cuffd_checked_calls) {
    for (; seen < count; seen++) {
      ssize_t got = cuffd_checked_read(&heads[seen], (const char *)start + (size_t)seen * page_size, 8);
      if (got < 0 && seen == 0) return (int)got;
      if (got != 8) break;
    }
  }
  for (int i = 0; i < seen; i++)
    if (heads[i]) *bits |= (uint64_t)1 << i;
  return seen;
}
