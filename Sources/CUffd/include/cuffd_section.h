// Critical sections that cost their readers two plain stores: whoever waits for them pays for the fences of both sides.
//
// Each thread notes in a slot of its own which object it is inside. The one who waits has changed the object before, then makes
// every running thread of the process pass a fence (membarrier(2)), and then looks at the slots: who noted itself before the
// fence is seen there, who comes after it sees the change. No line of memory is written by two readers.
#ifndef CUFFD_SECTION_H
#define CUFFD_SECTION_H

#include <stdint.h>

#include "cuffd_thread.h"

// First, in a line of its own, by depth: which region the thread is accessing, times two, plus one where its rights must stay. Then of sections,
// by depth: the object, 0 outside; a number that tells one stay from the next; the region that the object belongs to.
struct cuffd_section_slot {
  uint64_t accessing[7];
  uint64_t accesses;
  uint64_t inside[7];
  uint64_t depth;
  uint64_t stay[7];
  uint64_t last_stay;
  uint64_t region[7];
  uint64_t unused;
} __attribute__((aligned(64)));

extern __thread struct cuffd_section_slot *_Nullable cuffd_section_slot
  __attribute__((tls_model("initial-exec")));
// Nonzero where the kernel has no membarrier(2): readers pass a fence of their own.
extern int cuffd_section_needs_fence;

// Gives the calling thread a slot; NULL where a thousand threads have one.
struct cuffd_section_slot *_Nullable cuffd_section_register(void);

// Keeps what follows from being moved before what was written: the other half is the fence of who waits, unless readers pass their own. Who
// does not see yet that it should is made to pass one by who waits.
static inline void cuffd_section_fence(void) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  if (__builtin_expect(__atomic_load_n(&cuffd_section_needs_fence, __ATOMIC_RELAXED), 0))
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
// Writes a note, which others see before they see anything that this thread reads from here on.
static inline void cuffd_section_note(uint64_t *_Nonnull place, uint64_t note) {
  __atomic_store_n(place, note, __ATOMIC_RELAXED);
  cuffd_section_fence();
}

// Notes that this thread is inside; 0 if there is no room for the note. What follows is not moved before it.
static inline int cuffd_section_enter(uint64_t object, uint64_t region) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  if (__builtin_expect(!slot, 0) && !(slot = cuffd_section_register())) return 0;
  uint64_t depth = slot->depth;
  if (__builtin_expect(depth == 7, 0)) return 0;
  slot->depth = depth + 1;
  slot->region[depth] = region;
  // Released: whoever sees the number sees that the stay before is over.
  __atomic_store_n(&slot->stay[depth], ++slot->last_stay, __ATOMIC_RELEASE);
  cuffd_section_note(&slot->inside[depth], object);
  return 1;
}

// Leaves the section that was entered last.
static inline void cuffd_section_leave(void) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  uint64_t depth = slot->depth - 1;
  __atomic_store_n(&slot->inside[depth], 0, __ATOMIC_RELEASE);
  slot->depth = depth;
}

// The same for accesses to a region, which are let in by a gate that is looked at afterwards. A thread's first note allocates, so there is
// none in the fault path and in callbacks.
static inline int cuffd_access_enter(uint64_t mark) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  if (__builtin_expect(!slot, 0)) {
    if (!cuffd_thread_is_plain() || !(slot = cuffd_section_register())) return 0;
  }
  uint64_t depth = slot->accesses;
  if (__builtin_expect(depth >= 7, 0)) return 0;
  slot->accesses = depth + 1;
  // A signal handler that accesses regions now notes itself above.
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  cuffd_section_note(&slot->accessing[depth], mark);
  return 1;
}
// Leaves what was entered last, which had room.
static inline void cuffd_access_leave(void) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  uint64_t depth = slot->accesses - 1;
  __atomic_store_n(&slot->accessing[depth], 0, __ATOMIC_RELEASE);
  slot->accesses = depth;
}
// An access for which there was no room, and which is counted elsewhere: notes for this thread alone that it is inside. Where all of the
// slot is taken it is above what is noted there.
void cuffd_access_enter_counted(uint64_t region);
void cuffd_access_leave_counted(uint64_t region);
// Leaves an access to the region, the last that was entered; 0 if there was no room for it.
static inline int cuffd_access_leave_region(uint64_t region) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  if (__builtin_expect(
        !slot || slot->accesses > 7 || !slot->accesses || slot->accessing[slot->accesses - 1] >> 1 != region, 0)) {
    cuffd_access_leave_counted(region);
    return 0;
  }
  cuffd_access_leave();
  return 1;
}
// Whether this thread is inside an access to the region.
int cuffd_access_is_mine(uint64_t region);
// Makes every thread of the process pass a fence, and then waits until no other thread is inside an access to the region: any, or
// only one for which rights must stay. 0 if that takes longer than `patience` nanoseconds.
int cuffd_access_wait(uint64_t region, int rights_only, uint64_t patience);

// How many regions of a class of ids are gone while pages of them are pinned. Read at every unpin, and hardly ever written.
extern uint32_t cuffd_orphans[64];
static inline void cuffd_orphan_raise(uint64_t id) { __atomic_fetch_add(&cuffd_orphans[id & 63], 1, __ATOMIC_SEQ_CST); }
static inline void cuffd_orphan_lower(uint64_t id) { __atomic_fetch_sub(&cuffd_orphans[id & 63], 1, __ATOMIC_SEQ_CST); }
static inline int cuffd_orphan_is_raised(uint64_t id) {
  return __atomic_load_n(&cuffd_orphans[id & 63], __ATOMIC_SEQ_CST) != 0;
}

// Whether this thread could enter.
static inline int cuffd_section_has_room(void) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  return (slot || (slot = cuffd_section_register())) && slot->depth < 7;
}
// Whether this thread is inside; inside anything; inside an object of the region.
int cuffd_section_is_mine(uint64_t object);
static inline int cuffd_section_is_any_mine(void) { return cuffd_section_slot && cuffd_section_slot->depth; }
int cuffd_section_is_of(uint64_t region);
// Makes every thread of the process pass a fence, and then waits for the other threads that are inside, those that come in later
// excepted. 0 if that takes longer than `patience` nanoseconds.
int cuffd_section_wait(uint64_t object, uint64_t patience);
// In a child of fork(): the other threads are gone.
void cuffd_section_forget_others(void);

#endif
