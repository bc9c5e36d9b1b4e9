// The signal path: find the range, ask the resolver, or chain to the handler that the program had.
//
// The table of ranges is an immutable sorted array behind one atomic pointer. A handler looks it up inside a short
// read section (two counters and an epoch, as in SRCU) and takes a reference on the entry; whoever replaces the table waits for
// the read sections that may still see the old one. Removing an entry waits for its references. Nothing here allocates or locks
// in a handler.
#include "cuffd_fault.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "cuffd_chain.h"
#include "cuffd_checked.h"
#include "cuffd_section.h"
#include "cuffd_descriptor.h"
#include "cuffd_sys.h"

#define TLS static __thread __attribute__((tls_model("initial-exec")))

struct entry {
  uint64_t start, end;
  int64_t token;
  cuffd_resolver resolve;
  void *context;
  int flags;
  atomic_int references;  // handlers inside resolve
};

struct table {
  size_t count;
  struct entry *entries[];
};

static _Atomic(struct table *) current;
static atomic_uint epoch;
static atomic_int inside[2];
static pthread_mutex_t changes = PTHREAD_MUTEX_INITIALIZER;
static int64_t last_token;

static struct sigaction previous_segv, previous_bus;
static atomic_int installed;

// ---- lookup ----

static unsigned read_enter(void) {
  for (;;) {
    unsigned side = atomic_load(&epoch) & 1;
    atomic_fetch_add(&inside[side], 1);
    if ((atomic_load(&epoch) & 1) == side) return side;
    atomic_fetch_sub(&inside[side], 1);
  }
}

static struct entry *find_and_hold(uint64_t address) {
  unsigned side = read_enter();
  struct table *table = atomic_load(&current);
  struct entry *found = NULL;
  size_t low = 0, high = table ? table->count : 0;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (table->entries[middle]->end <= address) low = middle + 1; else high = middle;
  }
  if (table && low < table->count && table->entries[low]->start <= address) {
    found = table->entries[low];
    atomic_fetch_add(&found->references, 1);
  }
  atomic_fetch_sub(&inside[side], 1);
  return found;
}

// Publishes a table and frees the old one once no handler can see it. Called with `changes` held.
static void publish(struct table *next) {
  struct table *old = atomic_exchange(&current, next);
  unsigned side = atomic_fetch_add(&epoch, 1) & 1;
  while (atomic_load(&inside[side]) > 0) sched_yield();
  free(old);
}

int64_t cuffd_fault_add(uint64_t start, uint64_t end, cuffd_resolver resolve, void *context, int flags) {
  pthread_mutex_lock(&changes);
  struct table *old = atomic_load(&current);
  size_t count = old ? old->count : 0;
  struct entry *entry = calloc(1, sizeof *entry);
  struct table *next = malloc(sizeof *next + (count + 1) * sizeof next->entries[0]);
  if (!entry || !next) {
    free(entry);
    free(next);
    pthread_mutex_unlock(&changes);
    return -ENOMEM;
  }
  *entry = (struct entry){start, end, ++last_token, resolve, context, flags, 0};
  size_t at = 0;
  while (at < count && old->entries[at]->start < start) at++;
  for (size_t i = 0; i < at; i++) next->entries[i] = old->entries[i];
  next->entries[at] = entry;
  for (size_t i = at; i < count; i++) next->entries[i + 1] = old->entries[i];
  next->count = count + 1;
  int64_t token = entry->token;
  publish(next);
  pthread_mutex_unlock(&changes);
  return token;
}

void cuffd_fault_remove(int64_t token) {
  pthread_mutex_lock(&changes);
  struct table *old = atomic_load(&current);
  struct entry *gone = NULL;
  size_t count = old ? old->count : 0;
  for (size_t i = 0; i < count; i++)
    if (old->entries[i]->token == token) gone = old->entries[i];
  if (gone) {
    // One entry fewer always fits the array that is there, but handlers may be reading it: copy.
    struct table *next = malloc(sizeof *next + count * sizeof next->entries[0]);
    if (!next) abort();
    next->count = 0;
    for (size_t i = 0; i < count; i++)
      if (old->entries[i] != gone) next->entries[next->count++] = old->entries[i];
    publish(next);
  }
  pthread_mutex_unlock(&changes);
  if (!gone) return;
  while (atomic_load(&gone->references) > 0) sched_yield();
  free(gone);
}

// ---- the handler ----

__thread struct cuffd_thread cuffd_thread __attribute__((tls_model("initial-exec")));
TLS uint64_t repeated_address, repeated_generation;
TLS uint32_t repeated_count;

static int is_write(const ucontext_t *context) {
#if defined(__x86_64__)
  return (context->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#elif defined(__aarch64__)
  // The ESR record follows in the reserved area; bit 6 of a data abort says "write".
  const unsigned char *at = (const unsigned char *)context->uc_mcontext.__reserved;
  for (;;) {
    uint32_t magic, size;
    memcpy(&magic, at, 4);
    memcpy(&size, at + 4, 4);
    if (!magic || !size) return 1;
    if (magic == 0x45535201) {
      uint64_t esr;
      memcpy(&esr, at + 8, 8);
      return (esr >> 6) & 1;
    }
    at += size;
  }
#else
#error "how does this processor report whether a fault was a write?"
#endif
}

// So that a core dump and the exit status name the real signal.
static void restore_default(int signal_number) {
  struct sigaction action = {.sa_handler = SIG_DFL};
  sigaction(signal_number, &action, NULL);
}

// `is_direct`: the kernel has entered our handler, which has nothing left to do but to restore errno.
static void chain(int signal_number, siginfo_t *info, void *raw, int is_direct, int saved) {
  struct sigaction *previous = signal_number == SIGSEGV ? &previous_segv : &previous_bus;
  struct sigaction action = *previous;
  int from_kernel = info->si_code > 0;
  if (!(action.sa_flags & SA_SIGINFO) && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)) {
    if (action.sa_handler == SIG_IGN && !from_kernel) return;
    // The kernel does not let a fault be ignored: returning runs the instruction again, and the default action kills.
    restore_default(signal_number);
    if (!from_kernel) syscall(SYS_tgkill, getpid(), (int)syscall(SYS_gettid), signal_number);
    return;
  }
  if (action.sa_flags & SA_RESETHAND) *previous = (struct sigaction){.sa_handler = SIG_DFL};
  // What the kernel would have blocked for that handler; sigreturn puts the interrupted mask back.
  sigset_t mask = ((ucontext_t *)raw)->uc_sigmask, old;
  sigorset(&mask, &mask, &action.sa_mask);
  if (!(action.sa_flags & SA_NODEFER)) sigaddset(&mask, signal_number);
  pthread_sigmask(SIG_SETMASK, &mask, &old);
  void *handler = action.sa_flags & SA_SIGINFO ? (void *)action.sa_sigaction : (void *)action.sa_handler;
  errno = saved;
  if (is_direct && !(action.sa_flags & SA_ONSTACK)) cuffd_chain_enter(handler, signal_number, info, raw);
  if (action.sa_flags & SA_SIGINFO) action.sa_sigaction(signal_number, info, raw);
  else action.sa_handler(signal_number);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
}

// What the kernel does where it cannot read a page of a mapped file.
static void chain_as_bus_error(const siginfo_t *info, void *raw, int is_direct, int saved) {
  siginfo_t error = *info;
  error.si_signo = SIGBUS;
  error.si_code = BUS_ADRERR;
  if (!(previous_bus.sa_flags & SA_SIGINFO) && (previous_bus.sa_handler == SIG_DFL || previous_bus.sa_handler == SIG_IGN)) {
    // Running the instruction again would bring SIGSEGV, or no signal at all by then.
    restore_default(SIGBUS);
    syscall(SYS_tgkill, getpid(), (int)syscall(SYS_gettid), SIGBUS);
    return;
  }
  chain(SIGBUS, &error, raw, is_direct, saved);
}

// Whether the kernel entered the handler whose frame begins at `frame`: it puts the context right behind the return address.
static int is_called_by_kernel(const void *frame, const void *context) {
#if defined(__x86_64__)
  return frame == context;
#else
  (void)frame;
  (void)context;
  return 0;
#endif
}

static void on_fault(int signal_number, siginfo_t *info, void *raw) {
  int saved = errno;
  int resolved = 0;
  int is_masked = is_called_by_kernel(__builtin_dwarf_cfa(), raw);
  if (info->si_code > 0 && cuffd_thread.fault == 0) {
    uint64_t address = (uint64_t)(uintptr_t)info->si_addr;
    struct entry *entry = find_and_hold(address);
    if (entry) {
      // A handler that was installed over this one calls it with its own mask only. A profiler's handler that touched managed
      // memory would fault while this thread holds the wrprotect lock.
      sigset_t everything, old;
      if (!is_masked) {
        sigfillset(&everything);
        pthread_sigmask(SIG_SETMASK, &everything, &old);
      }
      cuffd_thread.fault++;
      resolved = entry->resolve(entry->context, address, is_write(raw));
      cuffd_thread.fault--;
      if (!is_masked) pthread_sigmask(SIG_SETMASK, &old, NULL);
      atomic_fetch_sub(&entry->references, 1);
    }
  }
  if (!resolved) chain(signal_number, info, raw, is_masked, saved);
  if (resolved == cuffd_fault_bus_error) chain_as_bus_error(info, raw, is_masked, saved);
  errno = saved;
}

int cuffd_fault_install(void) {
  int result = 0;
  pthread_mutex_lock(&changes);
  if (!atomic_load(&installed)) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    // Everything is blocked while a fault is resolved: a profiler's handler that touched managed memory would otherwise fault
    // while this thread holds the wrprotect lock.
    sigfillset(&action.sa_mask);
    if (sigaction(SIGSEGV, NULL, &previous_segv) || sigaction(SIGBUS, NULL, &previous_bus)) result = -errno;
    atomic_store(&installed, 1);
    if (!result && (sigaction(SIGSEGV, &action, NULL) || sigaction(SIGBUS, &action, NULL))) result = -errno;
    if (result) atomic_store(&installed, 0);
  }
  pthread_mutex_unlock(&changes);
  return result;
}

int cuffd_fault_installed(void) {
  struct sigaction segv, bus;
  if (sigaction(SIGSEGV, NULL, &segv) || sigaction(SIGBUS, NULL, &bus)) return 0;
  return segv.sa_sigaction == on_fault && bus.sa_sigaction == on_fault;
}

// ---- fork ----

static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static struct { int fd; struct cuffd_identity identity; } *descriptors;  // the number of a free slot is -1
static int descriptor_count;
uint32_t cuffd_generation;
static int watching;
static atomic_int has_spaces;  // the program uses more than files and rings

static void before_fork(void) {
  pthread_mutex_lock(&opening);
  pthread_mutex_lock(&changes);
}
static void in_parent(void) {
  pthread_mutex_unlock(&changes);
  pthread_mutex_unlock(&opening);
}
static void in_child(void) {
  struct table *table = atomic_load(&current);
  for (size_t i = 0; table && i < table->count; i++) {
    struct entry *entry = table->entries[i];
    if (entry->flags & cuffd_range_unprotect_in_child)
      mprotect((void *)(uintptr_t)entry->start, entry->end - entry->start, PROT_READ | PROT_WRITE);
  }
  atomic_store(&current, NULL);  // faults of the child are the program's own; the table stays allocated
  atomic_store(&inside[0], 0);
  atomic_store(&inside[1], 0);
  for (int i = 0; i < descriptor_count; i++) {
    // Other code may have closed the number, and have it now.
    cuffd_close_own(descriptors[i].fd, descriptors[i].identity);
    descriptors[i].fd = -1;
  }
  cuffd_thread.fault = 0;
  cuffd_thread.notified = 0;
  if (atomic_load(&has_spaces)) cuffd_section_forget_others();
  cuffd_checked_forget();
  __atomic_fetch_add(&cuffd_generation, 1, __ATOMIC_RELAXED);
  pthread_mutex_unlock(&changes);
  pthread_mutex_unlock(&opening);
}

static int watch(void) {
  pthread_mutex_lock(&changes);
  int result = watching ? 0 : -pthread_atfork(before_fork, in_parent, in_child);
  if (!result) watching = 1;
  pthread_mutex_unlock(&changes);
  return result;
}

// A store, an image or a ring needs no address space, and must know its process as well.
__attribute__((constructor)) static void watch_from_the_start(void) { watch(); }

int cuffd_fork_watch(void) {
  atomic_store(&has_spaces, 1);
  return watch();
}

void cuffd_fork_hold(void) { pthread_mutex_lock(&opening); }
void cuffd_fork_allow(void) { pthread_mutex_unlock(&opening); }

int cuffd_fork_add_descriptor(int fd) {
  struct cuffd_identity identity;
  int result = cuffd_identify(fd, &identity);
  if (result) return result;
  pthread_mutex_lock(&changes);
  int slot = 0;
  while (slot < descriptor_count && descriptors[slot].fd >= 0) slot++;
  if (slot == descriptor_count) {
    int count = descriptor_count ? 2 * descriptor_count : 64;
    void *larger = realloc(descriptors, sizeof *descriptors * (size_t)count);
    if (larger) {
      descriptors = larger;
      for (int i = descriptor_count; i < count; i++) descriptors[i].fd = -1;
      descriptor_count = count;
    } else {
      result = -ENOMEM;
    }
  }
  if (!result) {
    descriptors[slot].fd = fd;
    descriptors[slot].identity = identity;
  }
  pthread_mutex_unlock(&changes);
  return result;
}

void cuffd_fork_remove_descriptor(int fd) {
  pthread_mutex_lock(&changes);
  for (int i = 0; i < descriptor_count; i++)
    if (descriptors[i].fd == fd) descriptors[i].fd = -1;
  pthread_mutex_unlock(&changes);
}

// ---- per thread ----

TLS struct { uint64_t operation; const void *subscriber; } callbacks[8];
TLS uint64_t last_operation;
TLS uint64_t owner;

uint64_t cuffd_operation_next(void) {
  // A range that was kept beyond its callback must not be taken for one of another thread's.
  static _Atomic uint64_t threads;
  if (!last_operation) last_operation = (atomic_fetch_add(&threads, 1) + 1) << 40;
  return ++last_operation;
}
int cuffd_notified_enter(uint64_t operation, const void *subscriber) {
  if (cuffd_thread.notified == 8) return 0;
  callbacks[cuffd_thread.notified].operation = operation;
  callbacks[cuffd_thread.notified++].subscriber = subscriber;
  return 1;
}
void cuffd_notified_leave(void) { cuffd_thread.notified--; }
uint64_t cuffd_notified_operation(void) { return cuffd_thread.notified ? callbacks[cuffd_thread.notified - 1].operation : 0; }
const void *cuffd_notified_subscriber(int depth) { return callbacks[depth].subscriber; }
uint64_t cuffd_owner(void) { return owner; }
uint64_t cuffd_owner_replace(uint64_t next) {
  uint64_t before = owner;
  owner = next;
  return before;
}

uint32_t cuffd_repeated_fault(uint64_t address, uint64_t generation) {
  if (address == 0 || address != repeated_address) {
    repeated_address = address;
    repeated_generation = generation;
    repeated_count = 0;
  } else if (generation != repeated_generation) {
    repeated_generation = generation;
    return repeated_count;
  }
  return address ? ++repeated_count : 0;
}
