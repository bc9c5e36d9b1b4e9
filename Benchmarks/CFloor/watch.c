#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "floor.h"

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

static struct cfloor_watch watch;
static pthread_t reader;
// A write to it ends the reader, who otherwise would need a second system call for each fault to see that it should.
static uint64_t stop_page;
static struct sigaction previous;

// The floor of handler-thread delivery: one read, one ioctl that also wakes. The bitmap costs a store.
static void *reader_main(void *unused) {
  (void)unused;
  for (;;) {
    struct uffd_msg message;
    if (read(watch.uffd, &message, sizeof message) != sizeof message) continue;
    if (message.arg.pagefault.address == stop_page) {
      floor_check(floor_writeprotect(watch.uffd, stop_page, FLOOR_PAGE, 0), "unprotect");
      return NULL;
    }
    uint64_t start = message.arg.pagefault.address & ~(watch.fault_length - 1);
    uint64_t page = (start - watch.base) / FLOOR_PAGE;
    for (uint64_t i = 0; i < watch.fault_length / FLOOR_PAGE; i++, page++)
      floor_store(&watch.written[page / 64], floor_load(&watch.written[page / 64]) | (uint64_t)1 << (page % 64));
    floor_check(floor_writeprotect(watch.uffd, start, watch.fault_length, 0), "unprotect");
  }
}

// Whoever watches other memory of the process with the same signal had its handler here first.
static void pass_on(int number, siginfo_t *info, void *context) {
  if (!(previous.sa_flags & SA_SIGINFO)) abort();
  previous.sa_sigaction(number, info, context);
}

// The floor of in-place delivery: the writer's own thread removes the protection; nobody waits, so nobody is woken.
static void on_sigbus(int number, siginfo_t *info, void *context) {
  uint64_t start = (uint64_t)(uintptr_t)info->si_addr & ~(watch.fault_length - 1);
  if (start - watch.base >= watch.length) pass_on(number, info, context);
  else if (!floor_writeprotect(watch.uffd, start, watch.fault_length, UFFDIO_WRITEPROTECT_MODE_DONTWAKE)) abort();
}

// The floor of mprotect delivery.
static void on_sigsegv(int number, siginfo_t *info, void *context) {
  uint64_t start = (uint64_t)(uintptr_t)info->si_addr & ~(watch.fault_length - 1);
  if (start - watch.base >= watch.length) pass_on(number, info, context);
  else if (mprotect((void *)(uintptr_t)start, watch.fault_length, PROT_READ | PROT_WRITE)) abort();
}

static void take_signal(int number, void (*handler)(int, siginfo_t *, void *)) {
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
  floor_check(!sigaction(number, &action, &previous), "sigaction");
}

int floor_open_uffd(uint64_t features) {
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  if (fd < 0) {
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    floor_check(device >= 0, "/dev/userfaultfd");
    fd = ioctl(device, _IO(0xAA, 0x00), O_CLOEXEC);
    close(device);
  }
  floor_check(fd >= 0, "userfaultfd");
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  floor_check(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
  return fd;
}

static void protect(uint64_t start, uint64_t length) {
  floor_check(floor_writeprotect(watch.uffd, start, length, UFFDIO_WRITEPROTECT_MODE_WP), "UFFDIO_WRITEPROTECT");
}

static void add_range(uint64_t start, uint64_t length) {
  struct uffdio_register arg = {.range = {start, length}, .mode = UFFDIO_REGISTER_MODE_WP};
  floor_check(!ioctl(watch.uffd, UFFDIO_REGISTER, &arg), "UFFDIO_REGISTER");
}

// What a mechanism needs before anything can be armed.
static void open_descriptors(void) {
  uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED;
  switch (watch.mechanism) {
    case cfloor_mprotect: return;
    case cfloor_thread: break;
    case cfloor_in_place: features |= UFFD_FEATURE_SIGBUS; break;
    default:
      features |= UFFD_FEATURE_WP_ASYNC;
      watch.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
      floor_check(watch.pagemap >= 0, "pagemap");
  }
  watch.uffd = floor_open_uffd(features);
}

// The floor of arming: one registration and one protection of the whole range.
static void arm(void) {
  if (watch.uffd < 0) {
    floor_check(!mprotect((void *)(uintptr_t)watch.base, watch.length, PROT_READ), "mprotect");
    return;
  }
  add_range(watch.base, watch.length);
  if (watch.mechanism == cfloor_async_scan) floor_scan_protect(&watch);
  else if (watch.mechanism == cfloor_async_huge) floor_protect_huge(&watch);
  else protect(watch.base, watch.length);
}

struct cfloor_watch *cfloor_watch_start(
  uint64_t base, size_t pages, int mechanism, size_t fault_pages, double *ns) {
  watch = (struct cfloor_watch){base, pages * FLOOR_PAGE, fault_pages * FLOOR_PAGE, mechanism, -1, -1, NULL};
  uint64_t opening = cfloor_now();
  open_descriptors();
  opening = cfloor_now() - opening;
  switch (mechanism) {
    case cfloor_thread:
      watch.written = calloc((pages + 63) / 64, 8);
      floor_check(watch.written != NULL, "calloc");
      stop_page = cfloor_map(1, 0, 1);
      add_range(stop_page, FLOOR_PAGE);
      protect(stop_page, FLOOR_PAGE);
      floor_check(!pthread_create(&reader, NULL, reader_main, NULL), "pthread_create");
      break;
    case cfloor_in_place:
      take_signal(SIGBUS, on_sigbus);
      break;
    case cfloor_mprotect:
      take_signal(SIGSEGV, on_sigsegv);
      break;
  }
  uint64_t start = cfloor_now();
  arm();
  *ns = (double)(opening + cfloor_now() - start) / (double)pages;
  return &watch;
}

void cfloor_watch_stop(struct cfloor_watch *stopped) {
  if (stopped->uffd >= 0) {
    struct uffdio_range range = {stopped->base, stopped->length};
    floor_check(!ioctl(stopped->uffd, UFFDIO_UNREGISTER, &range), "UFFDIO_UNREGISTER");
  }
  switch (stopped->mechanism) {
    case cfloor_thread:
      *(volatile uint64_t *)(uintptr_t)stop_page = 0;
      pthread_join(reader, NULL);
      cfloor_unmap(stop_page, 1);
      break;
    case cfloor_in_place:
      sigaction(SIGBUS, &previous, NULL);
      break;
    case cfloor_mprotect:
      floor_check(!mprotect((void *)(uintptr_t)stopped->base, stopped->length, PROT_READ | PROT_WRITE), "mprotect");
      sigaction(SIGSEGV, &previous, NULL);
      break;
  }
  free((void *)stopped->written);
  if (stopped->pagemap >= 0) close(stopped->pagemap);
  if (stopped->uffd >= 0) close(stopped->uffd);
}
