// Signal handlers as host programs write them, and storms of signals.
#include "CTestSupport.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_int seen_count, seen_signal, seen_code;
static _Atomic uint64_t seen_address;
static sigset_t seen_mask;
static atomic_int seen_on_alternate_stack;
static struct { int flags; struct sigaction previous; } hosts[65];
static uint64_t guard;
static int truncated_file = -1;

static __thread sigjmp_buf landing;
static __thread volatile int is_trying;

static void record(int signal_number, siginfo_t *info) {
  atomic_store(&seen_signal, signal_number);
  atomic_store(&seen_code, info ? info->si_code : 0);
  atomic_store(&seen_address, info ? (uint64_t)(uintptr_t)info->si_addr : 0);
  pthread_sigmask(SIG_BLOCK, NULL, &seen_mask);
  stack_t stack;
  atomic_store(&seen_on_alternate_stack, sigaltstack(NULL, &stack) == 0 && (stack.ss_flags & SS_ONSTACK));
  atomic_fetch_add(&seen_count, 1);
  if (is_trying) siglongjmp(landing, signal_number);
  if (guard) mprotect((void *)(uintptr_t)guard, 4096, PROT_READ | PROT_WRITE);
  if (truncated_file >= 0 && ftruncate(truncated_file, 4096)) abort();
}

static void plain(int signal_number) { record(signal_number, NULL); }

static void with_info(int signal_number, siginfo_t *info, void *context) {
  int flags = hosts[signal_number].flags;
  uint64_t address = (uint64_t)(uintptr_t)info->si_addr;
  int is_own = guard && address >= guard && address < guard + 4096;
  if ((flags & ct_chains) && !is_own) {
    struct sigaction *previous = &hosts[signal_number].previous;
    if (previous->sa_flags & SA_SIGINFO) {
      previous->sa_sigaction(signal_number, info, context);
      return;
    }
    if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
      previous->sa_handler(signal_number);
      return;
    }
  }
  record(signal_number, info);
}

int ct_handle(int signal_number, int flags) {
  struct sigaction action = {0};
  int has_info = flags & (ct_siginfo | ct_chains | ct_swallows);
  if (has_info) action.sa_sigaction = with_info; else action.sa_handler = plain;
  action.sa_flags = (has_info ? SA_SIGINFO : 0) | (flags & ct_reset_hand ? (int)SA_RESETHAND : 0)
    | (flags & ct_no_defer ? SA_NODEFER : 0);
  sigemptyset(&action.sa_mask);
  sigaddset(&action.sa_mask, SIGUSR1);
  hosts[signal_number].flags = flags;
  return sigaction(signal_number, &action, &hosts[signal_number].previous) ? -errno : 0;
}

static int simple(int signal_number, void (*handler)(int)) {
  struct sigaction action = {.sa_handler = handler};
  return sigaction(signal_number, &action, NULL) ? -errno : 0;
}

int ct_default(int signal_number) { return simple(signal_number, SIG_DFL); }
int ct_ignore(int signal_number) { return simple(signal_number, SIG_IGN); }

uint64_t ct_guard_page(void) {
  void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) abort();
  return guard = (uint64_t)(uintptr_t)page;
}

uint64_t ct_truncated_page(void) {
  truncated_file = memfd_create("truncated", MFD_CLOEXEC);
  void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, truncated_file, 0);
  if (page == MAP_FAILED) abort();
  return (uint64_t)(uintptr_t)page;
}

int ct_extend_truncated_page(void) { return ftruncate(truncated_file, 4096); }
int ct_cut_truncated_page(void) { return ftruncate(truncated_file, 0); }

int ct_seen_count(void) { return atomic_load(&seen_count); }
int ct_seen_signal(void) { return atomic_load(&seen_signal); }
int ct_seen_code(void) { return atomic_load(&seen_code); }
uint64_t ct_seen_address(void) { return atomic_load(&seen_address); }
int ct_seen_on_alternate_stack(void) { return atomic_load(&seen_on_alternate_stack); }

int ct_use_alternate_stack(void) {
  stack_t stack = {.ss_size = 64 << 10};
  stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL) ? -errno : 0;
}

int ct_seen_blocked(int signal_number) { return sigismember(&seen_mask, signal_number); }

int ct_is_blocked(int signal_number) {
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, NULL, &mask);
  return sigismember(&mask, signal_number);
}

int ct_raise(int signal_number) { return raise(signal_number); }
int ct_kill(int signal_number) { return kill(getpid(), signal_number); }

int ct_try_store(uint64_t address, uint8_t value) {
  int got = sigsetjmp(landing, 1);
  if (!got) {
    is_trying = 1;
    ct_store(address, value);
  }
  is_trying = 0;
  return got;
}

int ct_try_load(uint64_t address) {
  volatile int value = 0;
  int got = sigsetjmp(landing, 1);
  if (!got) {
    is_trying = 1;
    value = ct_load(address);
  }
  is_trying = 0;
  return got ? -got : value;
}

// ---- storms ----

static uint64_t profile_base;
static int profile_pages, profile_page_size;
static _Atomic uint64_t profile_count;
static __thread timer_t thread_timer;
static __thread int has_timer;

static void on_profile(int signal_number) {
  (void)signal_number;
  int saved = errno;
  uint64_t turn = atomic_fetch_add(&profile_count, 1);
  uint64_t page = turn % (uint64_t)profile_pages;
  // The last word of the page belongs to this handler alone.
  _Atomic uint32_t *word = (_Atomic uint32_t *)(uintptr_t)(profile_base + (page + 1) * (uint64_t)profile_page_size - 4);
  atomic_fetch_add(word, 1);
  errno = saved;
}

int ct_profile(uint64_t base, int pages, int page_size) {
  profile_base = base;
  profile_pages = pages;
  profile_page_size = page_size;
  struct sigaction action = {.sa_handler = on_profile, .sa_flags = SA_RESTART};
  return sigaction(SIGPROF, &action, NULL) ? -errno : 0;
}

int ct_profile_this_thread(int microseconds) {
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};
  event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
  if (timer_create(CLOCK_MONOTONIC, &event, &thread_timer)) return -errno;
  has_timer = 1;
  struct itimerspec span = {{0, microseconds * 1000L}, {0, microseconds * 1000L}};
  return timer_settime(thread_timer, 0, &span, NULL) ? -errno : 0;
}

void ct_end_profile_of_this_thread(void) {
  if (has_timer) timer_delete(thread_timer);
  has_timer = 0;
}

int ct_profile_process(int microseconds) {
  struct itimerval span = {{0, microseconds}, {0, microseconds}};
  return setitimer(ITIMER_PROF, &span, NULL) ? -errno : 0;
}

uint64_t ct_profile_count(void) { return atomic_load(&profile_count); }
