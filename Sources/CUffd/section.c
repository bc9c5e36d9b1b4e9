#include "cuffd_section.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cuffd_sys.h"

enum { capacity = 1024 };

static struct cuffd_section_slot slots[capacity];
// Looked at before it is exchanged, which decides: a slot that is given back just now may be passed over.
static atomic_int taken[capacity];
static atomic_int used;  // slots above were never taken
// Seen late, a thread goes without a slot for one try more, or looks through all of them.
static atomic_int is_full;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

__thread struct cuffd_section_slot *cuffd_section_slot __attribute__((tls_model("initial-exec")));
int cuffd_section_needs_fence;
uint32_t cuffd_orphans[64];
static atomic_int all_fence;  // every reader knows that it needs one

static void give_back(void *slot) {
  cuffd_section_slot = NULL;
  atomic_store(&is_full, 0);
  atomic_store(&taken[(struct cuffd_section_slot *)slot - slots], 0);
}

static void prepare(void) {
  pthread_key_create(&key, give_back);
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0) return;
  __atomic_store_n(&cuffd_section_needs_fence, 1, __ATOMIC_RELAXED);
  atomic_store(&all_fence, 1);
}

struct cuffd_section_slot *cuffd_section_register(void) {
  pthread_once(&once, prepare);
  if (atomic_load_explicit(&is_full, memory_order_relaxed)) return NULL;
  for (int i = 0; i < capacity; i++) {
    int free = 0;
    if (atomic_load_explicit(&taken[i], memory_order_relaxed)) continue;
    if (!atomic_compare_exchange_strong(&taken[i], &free, 1)) continue;
    int last = atomic_load(&used);
    while (last <= i && !atomic_compare_exchange_weak(&used, &last, i + 1)) {}
    for (int depth = 0; depth < 7; depth++) __atomic_store_n(&slots[i].inside[depth], 0, __ATOMIC_RELAXED);
    for (int depth = 0; depth < 7; depth++) __atomic_store_n(&slots[i].accessing[depth], 0, __ATOMIC_RELAXED);
    slots[i].depth = slots[i].accesses = 0;
    pthread_setspecific(key, &slots[i]);
    return cuffd_section_slot = &slots[i];
  }
  // One that is given back just now is found by the next thread that gives one back, or at the next try after that.
  atomic_store(&is_full, 1);
  return NULL;
}

int cuffd_section_is_mine(uint64_t object) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  for (uint64_t i = 0; slot && i < slot->depth; i++)
    if (slot->inside[i] == object) return 1;
  return 0;
}

int cuffd_section_is_of(uint64_t region) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  for (uint64_t i = 0; slot && i < slot->depth; i++)
    if (slot->region[i] == region) return 1;
  return 0;
}

static __thread uint64_t counted[8] __attribute__((tls_model("initial-exec")));

void cuffd_access_enter_counted(uint64_t region) {
  if (cuffd_section_slot && cuffd_section_slot->accesses >= 7) cuffd_section_slot->accesses++;
  for (int i = 0; i < 8; i++) {
    if (counted[i]) continue;
    counted[i] = region;
    return;
  }
}

void cuffd_access_leave_counted(uint64_t region) {
  if (cuffd_section_slot && cuffd_section_slot->accesses > 7) cuffd_section_slot->accesses--;
  for (int i = 7; i >= 0; i--) {
    if (counted[i] != region) continue;
    counted[i] = 0;
    return;
  }
}

int cuffd_access_is_mine(uint64_t region) {
  struct cuffd_section_slot *slot = cuffd_section_slot;
  for (uint64_t i = 0; slot && i < slot->accesses && i < 7; i++)
    if (slot->accessing[i] >> 1 == region) return 1;
  for (int i = 0; i < 8; i++)
    if (counted[i] == region) return 1;
  return 0;
}

// Where the program has taken membarrier(2) away since. Taking a right from a page that is there makes x86 interrupt every processor that
// runs a thread of the process; elsewhere this thread goes to each of them, so that each has changed threads.
static void fence_by_other_means(void) {
#if defined(__x86_64__)
  static volatile char *page;
  if (!page) {
    void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped != MAP_FAILED) page = mapped;
  }
  if (page && mprotect((void *)page, 4096, PROT_READ | PROT_WRITE) == 0) {
    *page = 1;
    mprotect((void *)page, 4096, PROT_READ);
  }
#else
  cpu_set_t all, next;
  if (sched_getaffinity(0, sizeof all, &all)) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &all)) continue;
    CPU_ZERO(&next);
    CPU_SET(cpu, &next);
    sched_setaffinity(0, sizeof next, &next);
  }
  sched_setaffinity(0, sizeof all, &all);
#endif
}

static void fence(void) {
  pthread_once(&once, prepare);
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load(&all_fence)) return;
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0) return;
  static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&one);
  // From here on readers pass a fence; those that have not seen that pass one now.
  __atomic_store_n(&cuffd_section_needs_fence, 1, __ATOMIC_SEQ_CST);
  if (!atomic_load(&all_fence)) fence_by_other_means();
  atomic_store(&all_fence, 1);
  pthread_mutex_unlock(&one);
}

// The thread of the slot may leave and come back while this looks: a stay of another number began after the fence.
static int wait_for(struct cuffd_section_slot *slot, int depth, uint64_t object, uint64_t end) {
  uint64_t stay = __atomic_load_n(&slot->stay[depth], __ATOMIC_ACQUIRE);
  for (int turns = 0; __atomic_load_n(&slot->inside[depth], __ATOMIC_ACQUIRE) == object; turns++) {
    if (__atomic_load_n(&slot->stay[depth], __ATOMIC_ACQUIRE) != stay) return 1;
    if (turns < 1000) {
      cuffd_relax();
      if (turns % 64) continue;
    } else {
      cuffd_pause(20000);
    }
    if (cuffd_now_ns() > end) return 0;
  }
  return 1;
}

int cuffd_section_wait(uint64_t object, uint64_t patience) {
  fence();
  uint64_t begun = cuffd_now_ns();
  uint64_t end = begun + patience < begun ? UINT64_MAX : begun + patience;
  int last = atomic_load(&used);
  for (int i = 0; i < last; i++) {
    if (&slots[i] == cuffd_section_slot) continue;
    for (int depth = 0; depth < 7; depth++) {
      if (__atomic_load_n(&slots[i].inside[depth], __ATOMIC_ACQUIRE) != object) continue;
      if (!wait_for(&slots[i], depth, object, end)) return 0;
    }
  }
  return 1;
}

static int is_accessing(struct cuffd_section_slot *slot, uint64_t region, int rights_only) {
  for (int depth = 0; depth < 7; depth++) {
    uint64_t mark = __atomic_load_n(&slot->accessing[depth], __ATOMIC_ACQUIRE);
    if (mark >> 1 == region && (!rights_only || mark & 1)) return 1;
  }
  return 0;
}

// Whoever comes in after the fence finds the gate closed and leaves at once: seen here, it is waited for a moment more.
int cuffd_access_wait(uint64_t region, int rights_only, uint64_t patience) {
  fence();
  uint64_t begun = cuffd_now_ns();
  uint64_t end = begun + patience < begun ? UINT64_MAX : begun + patience;
  int last = atomic_load(&used);
  for (int i = 0; i < last; i++) {
    if (&slots[i] == cuffd_section_slot) continue;
    for (int turns = 0; is_accessing(&slots[i], region, rights_only); turns++) {
      if (cuffd_now_ns() >= end) return 0;
      if (turns < 1000) cuffd_relax();
      else cuffd_pause(20000);
    }
  }
  return 1;
}

void cuffd_section_forget_others(void) {
  pthread_once(&once, prepare);
  (void)syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
  for (int i = 0; i < capacity; i++) {
    if (&slots[i] == cuffd_section_slot) continue;
    memset(&slots[i], 0, sizeof slots[i]);
    atomic_store(&taken[i], 0);
  }
}
