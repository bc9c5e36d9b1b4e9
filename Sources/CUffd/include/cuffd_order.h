// What a thread holds, and violations of the lock order on their way to whoever may report them. No policy: who may take what is
// decided by the caller.
#ifndef CUFFD_ORDER_H
#define CUFFD_ORDER_H

#include <stdint.h>

#include "cuffd_thread.h"

// 0: nothing is recorded. 1: checked. 2: checked, and a violation ends the process. Set when the program is loaded, from the build
// and the environment.
extern int32_t cuffd_order_mode;
static inline int32_t cuffd_order_mode_now(void) { return __atomic_load_n(&cuffd_order_mode, __ATOMIC_RELAXED); }
void cuffd_order_set_mode(int32_t mode);

// A lock that the calling thread holds, or several of one kind.
struct cuffd_held {
  uint64_t key;                  // which lock, or which table of locks
  const char *_Nullable name;
  uint64_t place;                // where it was taken
  uint64_t highest;              // of several, the highest index taken so far
  uint32_t count;
  uint8_t rank;                  // 0: none, the entry is free
  uint8_t flags;                 // the caller's
};

// The calling thread's locks, oldest first; entries of rank 0 are to be skipped. Async-signal-safe, as are the next two.
int cuffd_held_count(void);
struct cuffd_held *_Nonnull cuffd_held_locks(void);
// Notes a lock, or one more of what is held under the same key already. Forgets it where there is no room.
void cuffd_held_push(const struct cuffd_held *_Nonnull lock);
// Takes back one of what was noted last under `key`; nothing if there is none.
void cuffd_held_pop(uint64_t key);

// How deep in callbacks of a subscriber the thread is, and whether one of them is `invalidateRange`.
void cuffd_callback_enter(int is_atomic);
void cuffd_callback_leave(void);
int cuffd_callback_is_atomic(void);

// The calling thread's id, remembered.
uint32_t cuffd_thread_id(void);
// The name of a thread of this process in 16 bytes, empty if it has ended. Of the calling thread: async-signal-safe.
void cuffd_thread_name(uint32_t id, char *_Nonnull name);

struct cuffd_site {
  const char *_Nullable name;
  uint64_t place;
  uint32_t thread;
  uint8_t rank;
};
struct cuffd_violation {
  struct cuffd_site held, wanted, owner, waiting;
  char thread_name[16];
  int32_t kind;
};

// Queues a violation unless one of the same two places was queued before, or there is no room. Async-signal-safe.
int cuffd_violation_note(const struct cuffd_violation *_Nonnull violation);
// How many are queued: one relaxed load. What is seen late is delivered by the next who looks, the watchdog among them.
int cuffd_violation_pending(void);
// Takes one out; 0 if there is none.
int cuffd_violation_take(struct cuffd_violation *_Nonnull violation);
// Forgets which pairs of places were reported.
void cuffd_violation_forget(void);

#endif
