#include "cuffd_sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "cuffd_descriptor.h"

#define CUFFD_PAGEMAP_SCAN _IOWR('f', 16, struct cuffd_pm_scan)

// Set by tests alone: seen late, a call is made that was to fail, or the other way round.
static atomic_int inject_call, inject_error, inject_skip, inject_times, inject_count;

void cuffd_inject(int call, int error, int skip, int times) {
  atomic_store(&inject_call, 0);
  atomic_store(&inject_error, error);
  atomic_store(&inject_skip, skip);
  atomic_store(&inject_times, times);
  atomic_store(&inject_count, 0);
  if (times > 0) atomic_store(&inject_call, call);
}

int cuffd_injected(void) { return atomic_load(&inject_count); }

// The error to return instead of making the call, or 0.
static inline int injected(int call) {
  if (__builtin_expect(atomic_load_explicit(&inject_call, memory_order_relaxed) != call, 1)) return 0;
  if (atomic_fetch_sub(&inject_skip, 1) > 0) return 0;
  if (atomic_fetch_sub(&inject_times, 1) <= 0) return 0;
  atomic_fetch_add(&inject_count, 1);
  return -atomic_load(&inject_error);
}

int cuffd_inject_here(int call) { return injected(call); }

static inline int call_ioctl(int call, int fd, unsigned long request, void *arg) {
  int error = injected(call);
  if (error) return error;
  return syscall(SYS_ioctl, fd, request, arg) < 0 ? -errno : 0;
}

int cuffd_open(int how) {
  int error = injected(cuffd_call_open);
  if (error) return error;
  if (how == 0) {
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) return -errno;
    int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    error = fd < 0 ? -errno : fd;
    close(device);
    return cuffd_raise(error);
  }
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | (how == 2 ? UFFD_USER_MODE_ONLY : 0));
  return fd < 0 ? -errno : cuffd_raise(fd);
}

int cuffd_api(int fd, uint64_t features, uint64_t *features_out, uint64_t *ioctls_out) {
  struct uffdio_api arg = {.api = UFFD_API, .features = features};
  int result = call_ioctl(cuffd_call_api, fd, UFFDIO_API, &arg);
  *features_out = arg.features;
  *ioctls_out = arg.ioctls;
  return result;
}

int cuffd_register(int fd, uint64_t start, uint64_t length, uint64_t mode, uint64_t *ioctls_out) {
  struct uffdio_register arg = {.range = {start, length}, .mode = mode};
  int result = call_ioctl(cuffd_call_register, fd, UFFDIO_REGISTER, &arg);
  *ioctls_out = arg.ioctls;
  return result;
}

int cuffd_unregister(int fd, uint64_t start, uint64_t length) {
  struct uffdio_range arg = {start, length};
  return call_ioctl(cuffd_call_unregister, fd, UFFDIO_UNREGISTER, &arg);
}

int cuffd_writeprotect(int fd, uint64_t start, uint64_t length, uint64_t mode) {
  struct uffdio_writeprotect arg = {.range = {start, length}, .mode = mode};
  int call = (mode & cuffd_wp_mode_wp) ? cuffd_call_writeprotect : cuffd_call_unprotect;
  return call_ioctl(call, fd, UFFDIO_WRITEPROTECT, &arg);
}

int cuffd_copy(int fd, uint64_t dst, uint64_t src, uint64_t length, uint64_t mode, int64_t *done) {
  struct uffdio_copy arg = {.dst = dst, .src = src, .len = length, .mode = mode};
  int result = call_ioctl(cuffd_call_copy, fd, UFFDIO_COPY, &arg);
  *done = arg.copy;
  return result;
}

int cuffd_zeropage(int fd, uint64_t start, uint64_t length, uint64_t mode, int64_t *done) {
  struct uffdio_zeropage arg = {.range = {start, length}, .mode = mode};
  int result = call_ioctl(cuffd_call_zeropage, fd, UFFDIO_ZEROPAGE, &arg);
  *done = arg.zeropage;
  return result;
}

int cuffd_continue(int fd, uint64_t start, uint64_t length, uint64_t mode, int64_t *done) {
  struct uffdio_continue arg = {.range = {start, length}, .mode = mode};
  int result = call_ioctl(cuffd_call_continue, fd, UFFDIO_CONTINUE, &arg);
  *done = arg.mapped;
  return result;
}

int cuffd_move(int fd, uint64_t dst, uint64_t src, uint64_t length, uint64_t mode, int64_t *done) {
  struct uffdio_move arg = {.dst = dst, .src = src, .len = length, .mode = mode};
  int result = call_ioctl(cuffd_call_move, fd, UFFDIO_MOVE, &arg);
  *done = arg.move;
  return result;
}

int cuffd_poison(int fd, uint64_t start, uint64_t length, uint64_t mode, int64_t *done) {
  struct uffdio_poison arg = {.range = {start, length}, .mode = mode};
  int result = call_ioctl(cuffd_call_poison, fd, UFFDIO_POISON, &arg);
  *done = arg.updated;
  return result;
}

int cuffd_wake(int fd, uint64_t start, uint64_t length) {
  struct uffdio_range arg = {start, length};
  return call_ioctl(cuffd_call_wake, fd, UFFDIO_WAKE, &arg);
}

int cuffd_read(int fd, struct cuffd_message *messages, int capacity) {
  int error = injected(cuffd_call_read);
  if (error) return error;
  struct uffd_msg raw[64];
  if (capacity > 64) capacity = 64;
  ssize_t bytes = read(fd, raw, sizeof raw[0] * (size_t)capacity);
  if (bytes < 0) return -errno;
  if (bytes == 0) return -EBADF;  // a userfaultfd has no end: the number was closed, and names some other file now
  int count = (int)(bytes / (ssize_t)sizeof raw[0]);
  for (int i = 0; i < count; i++) {
    struct cuffd_message *out = &messages[i];
    *out = (struct cuffd_message){.event = raw[i].event};
    switch (raw[i].event) {
      case UFFD_EVENT_PAGEFAULT:
        out->a = raw[i].arg.pagefault.flags;
        out->b = raw[i].arg.pagefault.address;
        out->c = raw[i].arg.pagefault.feat.ptid;
        break;
      case UFFD_EVENT_FORK:
        out->a = raw[i].arg.fork.ufd;
        break;
      case UFFD_EVENT_REMAP:
        out->a = raw[i].arg.remap.from;
        out->b = raw[i].arg.remap.to;
        out->c = raw[i].arg.remap.len;
        break;
      default:
        out->a = raw[i].arg.remove.start;
        out->b = raw[i].arg.remove.end;
    }
  }
  return count;
}

long cuffd_pagemap_scan(int fd, struct cuffd_pm_scan *arg) {
  int error = injected(cuffd_call_pagemap_scan);
  if (error) return error;
  arg->size = sizeof *arg;
  long result = syscall(SYS_ioctl, fd, CUFFD_PAGEMAP_SCAN, arg);
  return result < 0 ? -errno : result;
}

int cuffd_mmap(uint64_t hint, uint64_t length, int prot, int flags, int fd, int64_t offset, uint64_t *out) {
  int error = injected(cuffd_call_mmap);
  if (error) return error;
  void *address = mmap((void *)(uintptr_t)hint, length, prot, flags, fd, offset);
  if (address == MAP_FAILED) return -errno;
  *out = (uint64_t)(uintptr_t)address;
  return 0;
}

int cuffd_munmap(uint64_t start, uint64_t length) {
  int error = injected(cuffd_call_munmap);
  if (error) return error;
  return munmap((void *)(uintptr_t)start, length) < 0 ? -errno : 0;
}

int cuffd_mprotect(uint64_t start, uint64_t length, int prot) {
  int error = injected(cuffd_call_mprotect);
  if (error) return error;
  return mprotect((void *)(uintptr_t)start, length, prot) < 0 ? -errno : 0;
}

int cuffd_madvise(uint64_t start, uint64_t length, int advice) {
  int error = injected(cuffd_call_madvise);
  if (error) return error;
  return madvise((void *)(uintptr_t)start, length, advice) < 0 ? -errno : 0;
}

int cuffd_mincore(uint64_t start, uint64_t length, unsigned char *pages) {
  return mincore((void *)(uintptr_t)start, length, pages) < 0 ? -errno : 0;
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HAS_THREAD_SANITIZER 1
#endif
#endif

#ifdef HAS_THREAD_SANITIZER
typedef uint64_t __attribute__((aligned(1), may_alias)) loose_word;

// Volatile, or the compiler makes a memcpy of it, which is watched.
__attribute__((no_sanitize("thread"))) void cuffd_copy_bytes(void *target, const void *source, size_t length) {
  size_t at = 0;
  for (; at + 8 <= length; at += 8)
    *(volatile loose_word *)((char *)target + at) = *(const volatile loose_word *)((const char *)source + at);
  for (; at < length; at++) ((volatile char *)target)[at] = ((const volatile char *)source)[at];
}
#else
void cuffd_copy_bytes(void *target, const void *source, size_t length) { memcpy(target, source, length); }
#endif

__attribute__((no_sanitize("thread"))) int cuffd_is_zero_beside_writers(const void *source, size_t length) {
  // Pages are asked about in order, and most show at once that they are not zero: the next ones are fetched meanwhile. A prefetch
  // never faults.
  __builtin_prefetch((const char *)source + length);
  __builtin_prefetch((const char *)source + 2 * length);
  const uint64_t *words = source;
  for (size_t at = 0; at < length / 8; at += 8) {
    uint64_t bits = words[at] | words[at + 1] | words[at + 2] | words[at + 3] | words[at + 4] | words[at + 5] |
                    words[at + 6] | words[at + 7];
    if (bits) return 0;
  }
  return 1;
}

void cuffd_touch(void *byte) {
  // Not an addition of 0 and the like, of which a compiler makes a load.
  unsigned char held = __atomic_load_n((unsigned char *)byte, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n((unsigned char *)byte, &held, held, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

int cuffd_memfd(const char *name, unsigned flags) {
  int error = injected(cuffd_call_memfd);
  if (error) return error;
  int fd = memfd_create(name, flags);
  return fd < 0 ? -errno : cuffd_raise(fd);
}

ssize_t cuffd_pread(int fd, void *buffer, size_t length, int64_t offset) {
  ssize_t done = pread(fd, buffer, length, offset);
  return done < 0 ? -errno : done;
}

int cuffd_open_file(const char *path, int flags) {
  int fd = open(path, flags | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

ssize_t cuffd_read_file(int fd, void *buffer, size_t length) {
  ssize_t done = read(fd, buffer, length);
  return done < 0 ? -errno : done;
}

int64_t cuffd_seek_data(int fd, int64_t offset) {
  int64_t at = lseek(fd, offset, SEEK_DATA);
  return at < 0 ? -errno : at;
}

int64_t cuffd_seek_hole(int fd, int64_t offset) {
  int64_t at = lseek(fd, offset, SEEK_HOLE);
  return at < 0 ? -errno : at;
}

int cuffd_move_mapping(uint64_t start, uint64_t length, uint64_t target) {
  void *at = mremap((void *)(uintptr_t)start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(uintptr_t)target);
  return at == MAP_FAILED ? -errno : 0;
}

int64_t cuffd_file_blocks(int fd) {
  struct stat status;
  return fstat(fd, &status) ? 0 : (int64_t)status.st_blocks;
}

int64_t cuffd_filesystem(const char *path) {
  struct statfs result;
  return statfs(path, &result) < 0 ? -errno : (int64_t)result.f_type;
}

int cuffd_current_directory(char *path, uint64_t size) {
  if (!getcwd(path, size)) return -errno;
  return path[0] == '/' ? (int)strlen(path) : -ENOENT;
}

void cuffd_close(int fd) { close(fd); }

long cuffd_page_size(void) { return sysconf(_SC_PAGESIZE); }

int cuffd_futex_wait(const uint32_t *word, uint32_t expected) {
  return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0) < 0 ? -errno : 0;
}

int cuffd_futex_wait_for(const uint32_t *word, uint32_t expected, int timeout_ms) {
  struct timespec span = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
  return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout_ms < 0 ? NULL : &span, NULL, 0) < 0 ? -errno : 0;
}

int cuffd_futex_wake(const uint32_t *word, int count) {
  long woken = syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
  return woken < 0 ? -errno : (int)woken;
}

uint64_t cuffd_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void cuffd_pause(uint64_t ns) {
  struct timespec span = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
  nanosleep(&span, NULL);
}

void cuffd_relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

int cuffd_processor_count(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

int cuffd_tid(void) { return (int)syscall(SYS_gettid); }

int cuffd_stack(uint64_t *start, uint64_t *end) {
  pthread_attr_t attributes;
  int error = pthread_getattr_np(pthread_self(), &attributes);
  if (error) return -error;
  void *base;
  size_t size;
  error = pthread_attr_getstack(&attributes, &base, &size);
  pthread_attr_destroy(&attributes);
  if (error) return -error;
  *start = (uint64_t)(uintptr_t)base;
  *end = *start + size;
  return 0;
}

int cuffd_epoll_create(void) {
  int fd = epoll_create1(EPOLL_CLOEXEC);
  return fd < 0 ? -errno : cuffd_raise(fd);
}

int cuffd_epoll_set(int epoll, int fd, uint64_t data, int one_shot, int modify) {
  struct epoll_event event = {.events = EPOLLIN | (one_shot ? EPOLLONESHOT : 0), .data = {.u64 = data}};
  return epoll_ctl(epoll, modify ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int cuffd_epoll_remove(int epoll, int fd) {
  return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) < 0 ? -errno : 0;
}

int cuffd_epoll_wait(int epoll, uint64_t *data, int timeout_ms) {
  struct epoll_event event;
  int count = epoll_wait(epoll, &event, 1, timeout_ms);
  if (count < 0) return -errno;
  if (count) *data = event.data.u64;
  return count;
}

int cuffd_eventfd(void) {
  int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return fd < 0 ? -errno : cuffd_raise(fd);
}

int cuffd_eventfd_signal(int fd) {
  uint64_t one = 1;
  return write(fd, &one, sizeof one) < 0 ? -errno : 0;
}

struct thread_start {
  void (*body)(void *);
  void (*on_exit)(void *);
  void *context;
  char name[16];
};

static void *thread_main(void *raw) {
  struct thread_start start = *(struct thread_start *)raw;
  free(raw);
  pthread_setname_np(pthread_self(), start.name);
  pthread_cleanup_push(start.on_exit, start.context);
  start.body(start.context);
  pthread_cleanup_pop(1);
  return NULL;
}

static void fault_free_mask(sigset_t *mask) {
  sigfillset(mask);
  sigdelset(mask, SIGSEGV);
  sigdelset(mask, SIGBUS);
  sigdelset(mask, SIGILL);
  sigdelset(mask, SIGFPE);
  sigdelset(mask, SIGABRT);
  sigdelset(mask, SIGTRAP);
}

int cuffd_thread_start(
  const char *name, void (*body)(void *), void (*on_exit)(void *), void *context, uint64_t *out) {
  struct thread_start *start = malloc(sizeof *start);
  if (!start) return -ENOMEM;
  *start = (struct thread_start){body, on_exit, context, {0}};
  strncpy(start->name, name, sizeof start->name - 1);
  // The thread inherits the mask: a process-directed signal (a profiler's, say) is never delivered to it.
  sigset_t mask, old;
  fault_free_mask(&mask);
  pthread_sigmask(SIG_SETMASK, &mask, &old);
  pthread_t thread;
  int error = pthread_create(&thread, NULL, thread_main, start);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (error) {
    free(start);
    return -error;
  }
  *out = (uint64_t)thread;
  return 0;
}

void cuffd_thread_join(uint64_t thread) { pthread_join((pthread_t)thread, NULL); }

void cuffd_thread_exit(void) { pthread_exit(NULL); }

void cuffd_block_signals(void *saved) {
  sigset_t mask;
  fault_free_mask(&mask);
  pthread_sigmask(SIG_SETMASK, &mask, (sigset_t *)saved);
}

void cuffd_restore_signals(const void *saved) { pthread_sigmask(SIG_SETMASK, (const sigset_t *)saved, NULL); }

void cuffd_die(const char *text) {
  ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
  ignored = write(STDERR_FILENO, "\n", 1);
  (void)ignored;
  abort();
}
