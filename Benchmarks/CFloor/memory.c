#include <errno.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "floor.h"

#define HUGE_PAGE ((uint64_t)2 << 20)

int floor_writeprotect(int uffd, uint64_t start, uint64_t length, uint64_t mode) {
  struct uffdio_writeprotect arg = {.range = {start, length}, .mode = mode};
  return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) == 0;
}

void floor_check(int good, const char *what) {
  if (good) return;
  perror(what);
  exit(EXIT_FAILURE);
}

uint64_t cfloor_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

// On a 2 MiB boundary; fd: -1 for private anonymous memory.
static uint64_t map(size_t pages, int fd, int huge, int populate) {
  uint64_t length = pages * FLOOR_PAGE;
  int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  void *raw = mmap(NULL, length + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  floor_check(raw != MAP_FAILED, "mmap");
  uint64_t start = (uint64_t)(uintptr_t)raw, base = (start + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
  if (base > start) munmap(raw, base - start);
  munmap(floor_at(base + length), start + HUGE_PAGE - base);
  void *placed = mmap(floor_at(base), length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
  floor_check(placed != MAP_FAILED, "mmap");
  floor_check(!madvise(placed, length, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE), "madvise");
  for (size_t page = 0; populate && page < pages; page++) *(volatile uint64_t *)floor_at(base + page * FLOOR_PAGE) = page;
  return base;
}

uint64_t cfloor_map(size_t pages, int huge, int populate) { return map(pages, -1, huge, populate); }

uint64_t cfloor_map_shared(size_t pages, int huge, int populate) {
  int fd = memfd_create("floor", MFD_CLOEXEC);
  floor_check(fd >= 0, "memfd_create");
  floor_check(!ftruncate(fd, (off_t)(pages * FLOOR_PAGE)), "ftruncate");
  uint64_t base = map(pages, fd, huge, populate);
  // The mapping keeps the file.
  close(fd);
  return base;
}

size_t cfloor_free_pages(void) {
  return (size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / FLOOR_PAGE;
}

void cfloor_populate(uint64_t base, size_t pages) {
  while (madvise(floor_at(base), pages * FLOOR_PAGE, MADV_POPULATE_WRITE))
    floor_check(errno == EINTR || errno == EAGAIN, "MADV_POPULATE_WRITE");
}

void cfloor_unmap(uint64_t base, size_t pages) { munmap(floor_at(base), pages * FLOOR_PAGE); }

void floor_write_pages(uint64_t base, const uint32_t *order, size_t count) {
  for (size_t i = 0; i < count; i++) *(volatile uint64_t *)floor_at(base + order[i] * FLOOR_PAGE) = i;
}

double cfloor_write_pages(uint64_t base, const uint32_t *order, size_t count) {
  uint64_t start = cfloor_now();
  floor_write_pages(base, order, count);
  return (double)(cfloor_now() - start) / (double)count;
}

double cfloor_read_pages(uint64_t base, const uint32_t *order, size_t count) {
  uint64_t start = cfloor_now();
  for (size_t i = 0; i < count; i++) (void)*(volatile uint64_t *)floor_at(base + order[i] * FLOOR_PAGE);
  return (double)(cfloor_now() - start) / (double)count;
}

struct writer {
  uint64_t base;
  const uint32_t *order;
  size_t count;
  pthread_barrier_t *ready;
  uint64_t start, end;
};

static void *writer_main(void *raw) {
  struct writer *writer = raw;
  pthread_barrier_wait(writer->ready);
  writer->start = cfloor_now();
  floor_write_pages(writer->base, writer->order, writer->count);
  writer->end = cfloor_now();
  return NULL;
}

double cfloor_write_pages_by_two(uint64_t base, const uint32_t *order, size_t count) {
  size_t half = count / 2;
  pthread_barrier_t ready;
  pthread_barrier_init(&ready, NULL, 2);
  struct writer a = {base, order, half, &ready, 0, 0}, b = {base, order + half, count - half, &ready, 0, 0};
  pthread_t other;
  floor_check(!pthread_create(&other, NULL, writer_main, &b), "pthread_create");
  writer_main(&a);
  pthread_join(other, NULL);
  pthread_barrier_destroy(&ready);
  uint64_t start = a.start < b.start ? a.start : b.start, end = a.end > b.end ? a.end : b.end;
  return (double)(end - start) / (double)count;
}

static size_t kib_of(const char *path, const char *key) {
  FILE *file = fopen(path, "r");
  floor_check(file != NULL, path);
  char line[256];
  size_t kib = 0, length = strlen(key);
  while (!kib && fgets(line, sizeof line, file))
    if (!strncmp(line, key, length)) kib = strtoul(line + length, NULL, 10);
  fclose(file);
  return kib;
}

size_t cfloor_resident_kib(void) {
  malloc_trim(0);
  // smaps_rollup walks the page tables; the counters of `status` may lag by a batch for each thread.
  return kib_of("/proc/self/smaps_rollup", "Rss:") + kib_of("/proc/self/status", "VmPTE:");
}
