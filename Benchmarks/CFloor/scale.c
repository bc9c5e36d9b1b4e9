#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "floor.h"

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

static inline volatile uint64_t *word(uint64_t base, size_t pages, size_t i) {
  return floor_at(base + (i & (pages - 1)) * FLOOR_PAGE + (i & 63) * 64);
}

void cfloor_walk_load(uint64_t base, size_t pages, size_t count) {
  for (size_t i = 0; i < count; i++) (void)*word(base, pages, i);
}

void cfloor_walk_store(uint64_t base, size_t pages, size_t count) {
  for (size_t i = 0; i < count; i++) *word(base, pages, i) = i;
}

void cfloor_walk_count(uint64_t base, size_t words, size_t count) {
  _Atomic uint64_t *counts = floor_at(base);
  for (size_t i = 0; i < count; i++) {
    atomic_fetch_add(&counts[i & (words - 1)], 1);
    atomic_fetch_sub(&counts[i & (words - 1)], 1);
  }
}

void cfloor_walk_copy(uint64_t base, size_t pages, size_t count) {
  char copy[FLOOR_PAGE];
  for (size_t i = 0; i < count; i++) {
    memcpy(copy, floor_at(base + (i & (pages - 1)) * FLOOR_PAGE), FLOOR_PAGE);
    // Somebody looks at it, as far as the compiler knows.
    __asm__ volatile("" : : "r"(copy) : "memory");
  }
}

// One descriptor and what it watches. On lines of its own: neighbours have other readers.
struct shard {
  _Alignas(64) uint64_t base;
  uint64_t length;
  // A write to it ends the reader.
  uint64_t stop_page;
  int uffd;
  _Atomic uint64_t *written;
  pthread_t reader;
};

struct cfloor_shards {
  uint64_t base, length, stop_pages;
  size_t count;
  int mechanism, pagemap;
  struct shard *shards;
};

// What the signal handler looks at.
static struct cfloor_shards current;
static struct sigaction previous;

// As the floor of a single reader: a read, a bit, an ioctl that also wakes.
static void *reader_main(void *raw) {
  struct shard *shard = raw;
  for (;;) {
    struct uffd_msg message;
    if (read(shard->uffd, &message, sizeof message) != sizeof message) continue;
    uint64_t start = message.arg.pagefault.address & ~(FLOOR_PAGE - 1);
    if (start != shard->stop_page) {
      uint64_t page = (start - shard->base) / FLOOR_PAGE;
      floor_store(&shard->written[page / 64], floor_load(&shard->written[page / 64]) | (uint64_t)1 << (page % 64));
    }
    floor_check(floor_writeprotect(shard->uffd, start, FLOOR_PAGE, 0), "unprotect");
    if (start == shard->stop_page) return NULL;
  }
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
  uint64_t start = (uint64_t)(uintptr_t)info->si_addr & ~(FLOOR_PAGE - 1);
  if (start - current.base >= current.length) {
    // Whoever watches other memory of the process had its handler here first.
    if (!(previous.sa_flags & SA_SIGINFO)) abort();
    previous.sa_sigaction(number, info, context);
    return;
  }
  const struct shard *shard = &current.shards[(start - current.base) / (current.length / current.count)];
  if (!floor_writeprotect(shard->uffd, start, FLOOR_PAGE, UFFDIO_WRITEPROTECT_MODE_DONTWAKE)) abort();
}

static void protect(const struct shard *shard, uint64_t start, uint64_t length) {
  struct uffdio_register arg = {.range = {start, length}, .mode = UFFDIO_REGISTER_MODE_WP};
  floor_check(!ioctl(shard->uffd, UFFDIO_REGISTER, &arg), "UFFDIO_REGISTER");
  if (current.pagemap >= 0) {
    struct cfloor_watch watch = {.base = start, .length = length, .uffd = shard->uffd, .pagemap = current.pagemap};
    floor_scan_protect(&watch);
  } else {
    floor_check(floor_writeprotect(shard->uffd, start, length, UFFDIO_WRITEPROTECT_MODE_WP), "UFFDIO_WRITEPROTECT");
  }
}

static void start_shard(struct shard *shard, uint64_t features) {
  shard->uffd = floor_open_uffd(features);
  if (current.mechanism == cfloor_thread) {
    shard->written = calloc((shard->length / FLOOR_PAGE + 63) / 64, 8);
    floor_check(shard->written != NULL, "calloc");
    protect(shard, shard->stop_page, FLOOR_PAGE);
    floor_check(!pthread_create(&shard->reader, NULL, reader_main, shard), "pthread_create");
  }
  protect(shard, shard->base, shard->length);
}

struct cfloor_shards *cfloor_shards_start(uint64_t base, size_t pages, size_t count, int mechanism) {
  uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED;
  current = (struct cfloor_shards){
    .base = base, .length = pages * FLOOR_PAGE, .count = count, .mechanism = mechanism, .pagemap = -1};
  current.shards = aligned_alloc(64, count * sizeof *current.shards);
  floor_check(current.shards != NULL, "aligned_alloc");
  if (mechanism == cfloor_thread) current.stop_pages = cfloor_map(count, 0, 1);
  if (mechanism == cfloor_in_place) features |= UFFD_FEATURE_SIGBUS;
  if (mechanism == cfloor_async_scan) {
    features |= UFFD_FEATURE_WP_ASYNC;
    current.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    floor_check(current.pagemap >= 0, "pagemap");
  }
  for (size_t i = 0; i < count; i++) {
    uint64_t length = current.length / count;
    current.shards[i] = (struct shard){
      .base = base + i * length, .length = length, .stop_page = current.stop_pages + i * FLOOR_PAGE};
    start_shard(&current.shards[i], features);
  }
  if (mechanism == cfloor_in_place) {
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    floor_check(!sigaction(SIGBUS, &action, &previous), "sigaction");
  }
  return &current;
}

void cfloor_shards_stop(struct cfloor_shards *stopped) {
  for (size_t i = 0; i < stopped->count; i++) {
    struct shard *shard = &stopped->shards[i];
    struct uffdio_range range = {shard->base, shard->length};
    floor_check(!ioctl(shard->uffd, UFFDIO_UNREGISTER, &range), "UFFDIO_UNREGISTER");
    if (stopped->mechanism == cfloor_thread) {
      *(volatile uint64_t *)floor_at(shard->stop_page) = 0;
      pthread_join(shard->reader, NULL);
      free((void *)shard->written);
    }
    close(shard->uffd);
  }
  if (stopped->mechanism == cfloor_thread) cfloor_unmap(stopped->stop_pages, stopped->count);
  if (stopped->mechanism == cfloor_in_place) sigaction(SIGBUS, &previous, NULL);
  if (stopped->pagemap >= 0) close(stopped->pagemap);
  free(stopped->shards);
}
