// The wrprotect lock: shared by fault handling, exclusive for write-protect operations.
#ifndef CUFFD_LOCK_H
#define CUFFD_LOCK_H

#include <stdint.h>

// Zeroed memory is an unlocked lock.
struct cuffd_wplock {
  uint64_t state;    // see lock.c
  uint32_t writers;  // 0 free, 1 held, 2 held with waiters
  uint32_t reserved;
};

void cuffd_wplock_lock_shared(struct cuffd_wplock *_Nonnull lock, uint64_t *_Nonnull waits);
int cuffd_wplock_try_shared(struct cuffd_wplock *_Nonnull lock);
void cuffd_wplock_unlock_shared(struct cuffd_wplock *_Nonnull lock);
void cuffd_wplock_lock_exclusive(struct cuffd_wplock *_Nonnull lock, uint64_t *_Nonnull waits);
// Returns 0 rather than wait.
int cuffd_wplock_try_exclusive(struct cuffd_wplock *_Nonnull lock);
void cuffd_wplock_unlock_exclusive(struct cuffd_wplock *_Nonnull lock);
// How many readers are queued behind a writer.
uint32_t cuffd_wplock_queued(struct cuffd_wplock *_Nonnull lock);

// Whether a writer has the lock, or waits for it.
static inline int cuffd_wplock_has_writer(const struct cuffd_wplock *_Nonnull lock) {
  return (__atomic_load_n(&lock->state, __ATOMIC_SEQ_CST) >> 31) & 1;
}

#endif
