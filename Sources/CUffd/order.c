// The record of held locks is a small array in each thread. A signal handler may come at any point of a push or a pop, and pushes and
// pops in turn; what it pushes it pops. Two rules keep that right: an entry is valid once its rank is set, which comes last; and a pop
// never shrinks the array below `floor`, which a push sets to keep its own entry from being taken for a free one.
#include "cuffd_order.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "cuffd_sys.h"

#define TLS static __thread __attribute__((tls_model("initial-exec")))
#define CAPACITY 32
#define FENCE() atomic_signal_fence(memory_order_seq_cst)

int32_t cuffd_order_mode;

TLS struct cuffd_held held[CAPACITY];
TLS volatile int count, held_floor;
TLS uint64_t atomic_callbacks;  // a bit for each callback, the innermost lowest
TLS uint32_t thread_id;

int cuffd_held_count(void) { return count; }
struct cuffd_held *cuffd_held_locks(void) { return held; }

// The newest entry of `key`, or -1.
static int find(uint64_t key) {
  for (int i = count - 1; i >= 0; i--)
    if (held[i].rank && held[i].key == key) return i;
  return -1;
}

void cuffd_held_push(const struct cuffd_held *lock) {
  int at = find(lock->key);
  if (at >= 0 && held[at].rank == lock->rank && held[at].flags == lock->flags) {
    held[at].count++;
    if (lock->highest > held[at].highest) held[at].highest = lock->highest;
    return;
  }
  at = count;
  if (at == CAPACITY) return;
  int before = held_floor;
  held_floor = at + 1;
  FENCE();
  count = at + 1;
  FENCE();
  held[at].key = lock->key;
  held[at].name = lock->name;
  held[at].place = lock->place;
  held[at].highest = lock->highest;
  held[at].count = 1;
  held[at].flags = lock->flags;
  FENCE();
  held[at].rank = lock->rank;
  FENCE();
  held_floor = before;
}

void cuffd_held_pop(uint64_t key) {
  int at = find(key);
  if (at < 0 || --held[at].count > 0) return;
  held[at].rank = 0;
  FENCE();
  for (int last = count; last > held_floor && !held[last - 1].rank; last = count) count = last - 1;
}

void cuffd_callback_enter(int is_atomic) {
  cuffd_thread.callbacks++;
  atomic_callbacks = atomic_callbacks << 1 | (is_atomic ? 1 : 0);
}
void cuffd_callback_leave(void) {
  cuffd_thread.callbacks--;
  atomic_callbacks >>= 1;
}
int cuffd_callback_is_atomic(void) { return atomic_callbacks != 0; }

uint32_t cuffd_thread_id(void) {
  if (!thread_id) thread_id = (uint32_t)cuffd_tid();
  return thread_id;
}

void cuffd_thread_name(uint32_t id, char *name) {
  memset(name, 0, 16);
  if (id == cuffd_thread_id()) {
    prctl(PR_GET_NAME, name);
    return;
  }
  char path[48];
  snprintf(path, sizeof path, "/proc/self/task/%u/comm", id);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ssize_t length = read(fd, name, 15);
  close(fd);
  name[length > 0 ? length - 1 : 0] = 0;  // without the newline
}

// ---- violations ----

#define QUEUE 32
#define PAIRS 1024

enum { slot_free, slot_busy, slot_full };

static struct {
  atomic_int state;
  struct cuffd_violation violation;
} queue[QUEUE];
static atomic_int pending;
static _Atomic uint64_t pairs[PAIRS];

// Whether a pair of places is new; where the table is full, it is not.
static int is_new(uint64_t first, uint64_t second) {
  uint64_t pair = first * 0x9e3779b97f4a7c15u ^ (second * 0xbf58476d1ce4e5b9u >> 1);
  pair = pair ? pair : 1;
  for (uint64_t i = 0, at = pair >> 40; i < PAIRS; i++, at++) {
    uint64_t seen = 0;
    if (atomic_compare_exchange_strong(&pairs[at % PAIRS], &seen, pair)) return 1;
    if (seen == pair) return 0;
  }
  return 0;
}

int cuffd_violation_note(const struct cuffd_violation *violation) {
  if (!is_new(violation->held.place, violation->wanted.place)) return 0;
  for (int i = 0; i < QUEUE; i++) {
    int expected = slot_free;
    if (!atomic_compare_exchange_strong(&queue[i].state, &expected, slot_busy)) continue;
    queue[i].violation = *violation;
    atomic_store(&queue[i].state, slot_full);
    atomic_fetch_add(&pending, 1);
    return 1;
  }
  return 0;
}

int cuffd_violation_pending(void) { return atomic_load_explicit(&pending, memory_order_relaxed); }

int cuffd_violation_take(struct cuffd_violation *violation) {
  for (int i = 0; i < QUEUE; i++) {
    int expected = slot_full;
    if (!atomic_compare_exchange_strong(&queue[i].state, &expected, slot_busy)) continue;
    *violation = queue[i].violation;
    atomic_store(&queue[i].state, slot_free);
    atomic_fetch_sub(&pending, 1);
    return 1;
  }
  return 0;
}

void cuffd_violation_forget(void) {
  for (int i = 0; i < PAIRS; i++) atomic_store(&pairs[i], 0);
}

// ---- the process ----

void cuffd_order_set_mode(int32_t mode) { __atomic_store_n(&cuffd_order_mode, mode, __ATOMIC_RELAXED); }

// A child of fork() holds nothing: what its parent's threads held is gone with them, and what is queued is the parent's to report.
static void in_child(void) {
  for (int i = 0; i < CAPACITY; i++) held[i].rank = 0;
  count = held_floor = 0;
  cuffd_thread.callbacks = 0;
  atomic_callbacks = 0;
  thread_id = 0;
  for (int i = 0; i < QUEUE; i++) atomic_store(&queue[i].state, slot_free);
  atomic_store(&pending, 0);
}

__attribute__((constructor)) static void begin(void) {
  const char *asked = getenv("PINKIT_LOCKCHECK");
#ifdef DEBUG
  int mode = 1;
#else
  int mode = asked && strcmp(asked, "1") == 0;
#endif
  if (asked && strcmp(asked, "fatal") == 0) mode = 2;
  cuffd_order_set_mode(mode);
  pthread_atfork(NULL, NULL, in_child);
}
