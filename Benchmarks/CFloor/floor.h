// Shared by the files of CFloor.
#ifndef FLOOR_H
#define FLOOR_H

#include <stdatomic.h>
#include <sys/types.h>

#include "CFloor.h"

#define FLOOR_PAGE ((uint64_t)4096)

// What runs in a child of floor_fork: a sanitizer's locks may have been held by threads that the child does not have.
#ifdef __clang__
#define FLOOR_IN_CHILD __attribute__((disable_sanitizer_instrumentation))
#else
#define FLOOR_IN_CHILD
#endif

static inline uint64_t floor_load(const _Atomic uint64_t *word) {
  return atomic_load_explicit(word, memory_order_relaxed);
}
static inline void floor_store(_Atomic uint64_t *word, uint64_t value) {
  atomic_store_explicit(word, value, memory_order_relaxed);
}

static inline void *floor_at(uint64_t address) { return (void *)(uintptr_t)address; }

// Ends the process with errno's reason.
void floor_check(int good, const char *what);

struct cfloor_watch {
  uint64_t base, length, fault_length;
  int mechanism;
  int uffd;      // -1 for mprotect
  int pagemap;  // async only, else -1
  // Thread only: a bit for each page. One writer, whom the kernel orders before who collects: plain loads and stores,
  // declared atomic only for the thread sanitizer, which does not see that order.
  _Atomic uint64_t *written;
};

// Write-protects what of the range is populated, by PAGEMAP_SCAN.
void floor_scan_protect(const struct cfloor_watch *watch);
void floor_protect_huge(const struct cfloor_watch *watch);

// UFFDIO_WRITEPROTECT; 1 = done, 0 = errno says why not. Async-signal-safe.
int floor_writeprotect(int uffd, uint64_t start, uint64_t length, uint64_t mode);

// A userfaultfd with the features, however this process gets one.
int floor_open_uffd(uint64_t features);

// One write to each page of `order`.
void floor_write_pages(uint64_t base, const uint32_t *order, size_t count);

// fork(2) and nothing else: no handler of pthread_atfork(3), which is no part of the kernel's price, and no SIGCHLD at the
// end, so that the program's own waitpid(-1) never sees the child. 0 in the child, which may make system calls only; -errno.
pid_t floor_fork(void);
// In such a child: closes every other descriptor. A copy of a pipe's other end would hide that its owner has died, and one of a
// userfaultfd would keep it alive.
void floor_keep_only(int fd);
// Waits for such a child. 0 or -errno; *status as waitpid(2) gives it.
int floor_reap(pid_t child, int *status);
_Noreturn void floor_exit(int status);

#endif
