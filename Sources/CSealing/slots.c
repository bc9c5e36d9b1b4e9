#include "CSealing.h"

#include <sched.h>
#include <stdatomic.h>

struct slot {
  _Alignas(cseal_line_bytes) atomic_int taken;
};

static _Thread_local char own;

// Looking first leaves the line to whoever has the slot. What is seen may be of a moment ago: the exchange decides, and who gets none looks
// again.
static int try_claim(struct slot *slot) {
  int free = 0;
  return atomic_load_explicit(&slot->taken, memory_order_relaxed) == 0 &&
    atomic_compare_exchange_strong_explicit(&slot->taken, &free, 1, memory_order_acquire, memory_order_relaxed);
}

size_t cseal_claim(void *slots, size_t count) {
  // Threads' own variables lie far apart, and the same thread finds the same slot again.
  size_t start = ((uintptr_t)&own * 0x9E3779B97F4A7C15u) >> 32;
  for (;;) {
    for (size_t i = 0; i < count; i++)
      if (try_claim((struct slot *)slots + (start + i) % count)) return (start + i) % count;
    sched_yield();
  }
}

void cseal_claim_this(void *slots, size_t index) {
  while (!try_claim((struct slot *)slots + index)) sched_yield();
}

void cseal_release(void *slots, size_t index) {
  atomic_store_explicit(&((struct slot *)slots + index)->taken, 0, memory_order_release);
}
