// A phase-fair reader-writer lock on two futexes. It allocates nothing and calls nothing but futex(2), so a signal handler
// may take it.
//
//   state, low word:   bit 31 = a writer holds the lock or waits for it to drain, bits 0..30 = readers inside
//   state, high word:  bit 31 = epoch, bits 0..30 = readers that came while a writer had the lock
//
// A writer first takes the `writers` mutex, then sets bit 31: from then on new readers queue in the high word, so readers
// cannot starve it. It waits until the readers inside are gone. When it leaves it turns all queued readers into readers
// inside in the same atomic step and flips the epoch: so writers cannot starve readers either, and a queued reader knows from
// the epoch that it is in. The epoch can flip only once while a reader of it sleeps, since the next writer waits for that
// reader; one bit is enough.
#include "cuffd_lock.h"

#include <limits.h>
#include <stdatomic.h>

#include "cuffd_sys.h"

#define PENDING ((uint64_t)1 << 31)
#define READERS (PENDING - 1)
#define ONE_QUEUED ((uint64_t)1 << 32)
#define EPOCH ((uint64_t)1 << 63)
#define QUEUED(state) (((state) & ~EPOCH) >> 32)

static inline _Atomic uint64_t *state_of(struct cuffd_wplock *lock) { return (_Atomic uint64_t *)&lock->state; }
static inline const uint32_t *low_word(struct cuffd_wplock *lock) { return (const uint32_t *)&lock->state; }
static inline const uint32_t *high_word(struct cuffd_wplock *lock) { return low_word(lock) + 1; }
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the futex words are laid out for little endian"
#endif

int cuffd_wplock_try_shared(struct cuffd_wplock *lock) {
  _Atomic uint64_t *word = state_of(lock);
  uint64_t state = atomic_load_explicit(word, memory_order_relaxed);
  while (!(state & PENDING)) {
    if (atomic_compare_exchange_weak_explicit(
          word, &state, state + 1, memory_order_acquire, memory_order_relaxed))
      return 1;
  }
  return 0;
}

void cuffd_wplock_lock_shared(struct cuffd_wplock *lock, uint64_t *waits) {
  _Atomic uint64_t *word = state_of(lock);
  uint64_t state = atomic_load_explicit(word, memory_order_relaxed);
  for (;;) {
    uint64_t next = (state & PENDING) ? state + ONE_QUEUED : state + 1;
    if (!atomic_compare_exchange_weak_explicit(
          word, &state, next, memory_order_acquire, memory_order_relaxed))
      continue;
    if (!(state & PENDING)) return;
    break;
  }
  *waits += 1;
  uint64_t epoch = state & EPOCH;
  for (;;) {
    state = atomic_load_explicit(word, memory_order_acquire);
    if ((state & EPOCH) != epoch) return;  // the writer that left has counted this reader in
    cuffd_futex_wait(high_word(lock), (uint32_t)(state >> 32));
  }
}

void cuffd_wplock_unlock_shared(struct cuffd_wplock *lock) {
  uint64_t state = atomic_fetch_sub_explicit(state_of(lock), 1, memory_order_release);
  if ((state & PENDING) && (state & READERS) == 1) cuffd_futex_wake(low_word(lock), 1);
}

void cuffd_wplock_lock_exclusive(struct cuffd_wplock *lock, uint64_t *waits) {
  _Atomic uint32_t *mutex = (_Atomic uint32_t *)&lock->writers;
  uint32_t free = 0;
  if (!atomic_compare_exchange_strong_explicit(mutex, &free, 1, memory_order_acquire, memory_order_relaxed)) {
    *waits += 1;
    while (atomic_exchange_explicit(mutex, 2, memory_order_acquire) != 0) cuffd_futex_wait(&lock->writers, 2);
  }
  _Atomic uint64_t *word = state_of(lock);
  uint64_t state = atomic_fetch_or_explicit(word, PENDING, memory_order_acquire) | PENDING;
  if (state & READERS) *waits += 1;
  while (state & READERS) {
    cuffd_futex_wait(low_word(lock), (uint32_t)state);
    state = atomic_load_explicit(word, memory_order_acquire);
  }
}

int cuffd_wplock_try_exclusive(struct cuffd_wplock *lock) {
  _Atomic uint32_t *mutex = (_Atomic uint32_t *)&lock->writers;
  uint32_t free = 0;
  if (!atomic_compare_exchange_strong_explicit(mutex, &free, 1, memory_order_acquire, memory_order_relaxed)) return 0;
  _Atomic uint64_t *word = state_of(lock);
  uint64_t state = atomic_load_explicit(word, memory_order_relaxed);
  while (!(state & READERS))
    if (atomic_compare_exchange_weak_explicit(word, &state, state | PENDING, memory_order_acquire, memory_order_relaxed))
      return 1;
  if (atomic_exchange_explicit(mutex, 0, memory_order_release) == 2) cuffd_futex_wake(&lock->writers, 1);
  return 0;
}

void cuffd_wplock_unlock_exclusive(struct cuffd_wplock *lock) {
  _Atomic uint64_t *word = state_of(lock);
  uint64_t state = atomic_load_explicit(word, memory_order_relaxed);
  uint64_t next;
  do {
    next = ((state & EPOCH) ^ EPOCH) | QUEUED(state);
  } while (!atomic_compare_exchange_weak_explicit(
    word, &state, next, memory_order_release, memory_order_relaxed));
  if (QUEUED(state)) cuffd_futex_wake(high_word(lock), INT_MAX);
  _Atomic uint32_t *mutex = (_Atomic uint32_t *)&lock->writers;
  if (atomic_exchange_explicit(mutex, 0, memory_order_release) == 2) cuffd_futex_wake(&lock->writers, 1);
}

uint32_t cuffd_wplock_queued(struct cuffd_wplock *lock) {
  return (uint32_t)QUEUED(atomic_load_explicit(state_of(lock), memory_order_relaxed));
}
