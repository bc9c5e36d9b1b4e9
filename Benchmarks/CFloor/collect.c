#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "floor.h"

// PAGEMAP_SCAN, Linux 6.7; named apart from the system's own for headers that have it.
struct scan_run {
  uint64_t start, end, categories;
};
struct scan_arg {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN _IOWR('f', 16, struct scan_arg)
#define SCAN_WP_MATCHING ((uint64_t)1 << 0)
#define SCAN_CHECK_WPASYNC ((uint64_t)1 << 1)
#define IS_WRITTEN ((uint64_t)1 << 1)
#define IS_PRESENT ((uint64_t)1 << 3)
#define IS_SWAPPED ((uint64_t)1 << 4)
#define IS_PFNZERO ((uint64_t)1 << 5)
#define IS_HUGE ((uint64_t)1 << 6)
// Holes count as written; asking for an entry keeps the kernel from filling them with page tables full of marks.
#define HAS_ENTRY (IS_PRESENT | IS_SWAPPED)
#define RUNS 4096

void floor_scan_protect(const struct cfloor_watch *watch) {
  uint64_t end = watch->base + watch->length;
  for (uint64_t at = watch->base; at < end;) {
    struct scan_arg arg = {
      .size = sizeof arg, .flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC, .start = at, .end = end,
      .category_mask = IS_WRITTEN, .category_anyof_mask = HAS_ENTRY, .return_mask = IS_WRITTEN};
    floor_check(ioctl(watch->pagemap, SCAN, &arg) >= 0, "PAGEMAP_SCAN");
    at = arg.walk_end;
  }
}

void floor_protect_huge(const struct cfloor_watch *watch) {
  static struct scan_run runs[RUNS];
  uint64_t end = watch->base + watch->length;
  for (uint64_t at = watch->base; at < end;) {
    struct scan_arg arg = {
      .size = sizeof arg, .start = at, .end = end, .vec = (uint64_t)(uintptr_t)runs, .vec_len = RUNS,
      .category_mask = IS_HUGE, .return_mask = IS_HUGE};
    int count = ioctl(watch->pagemap, SCAN, &arg);
    floor_check(count >= 0, "PAGEMAP_SCAN");
    for (int i = 0; i < count; i++)
      floor_check(
        floor_writeprotect(watch->uffd, runs[i].start, runs[i].end - runs[i].start, UFFDIO_WRITEPROTECT_MODE_WP),
        "UFFDIO_WRITEPROTECT");
    at = arg.walk_end;
  }
}

int64_t cfloor_huge_pages(uint64_t base, size_t pages) {
  struct scan_run runs[64];
  int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return -errno;
  int64_t huge = 0;
  uint64_t end = base + pages * FLOOR_PAGE;
  for (uint64_t at = base; at < end;) {
    struct scan_arg arg = {
      .size = sizeof arg, .start = at, .end = end, .vec = (uint64_t)(uintptr_t)runs, .vec_len = 64,
      .category_mask = IS_HUGE, .return_mask = IS_HUGE};
    int count = ioctl(pagemap, SCAN, &arg);
    if (count < 0) {
      huge = -errno;
      break;
    }
    for (int i = 0; i < count; i++) huge += (int64_t)((runs[i].end - runs[i].start) / FLOOR_PAGE);
    at = arg.walk_end;
  }
  close(pagemap);
  return huge;
}

// The floor of asynchronous collection: written pages that are not the zero page, protected again in the same walk.
static size_t scan(struct cfloor_watch *watch) {
  static struct scan_run runs[RUNS];
  size_t dirty = 0;
  uint64_t end = watch->base + watch->length;
  for (uint64_t at = watch->base; at < end;) {
    struct scan_arg arg = {
      .size = sizeof arg, .flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC, .start = at, .end = end,
      .vec = (uint64_t)(uintptr_t)runs, .vec_len = RUNS, .category_inverted = IS_PFNZERO,
      .category_mask = IS_WRITTEN | IS_PFNZERO, .category_anyof_mask = HAS_ENTRY, .return_mask = IS_WRITTEN};
    int count = ioctl(watch->pagemap, SCAN, &arg);
    floor_check(count >= 0, "PAGEMAP_SCAN");
    for (int i = 0; i < count; i++) dirty += (runs[i].end - runs[i].start) / FLOOR_PAGE;
    at = arg.walk_end;
  }
  return dirty;
}

// The floor of synchronous collection: protect each run that the bitmap holds, and clear it.
static size_t protect_runs(struct cfloor_watch *watch) {
  size_t dirty = 0, pages = watch->length / FLOOR_PAGE;
  for (size_t page = 0; page < pages;) {
    uint64_t rest = floor_load(&watch->written[page / 64]) >> (page % 64);
    if (!rest) {
      page = (page / 64 + 1) * 64;
      continue;
    }
    page += (size_t)__builtin_ctzll(rest);
    size_t first = page;
    while (page < pages) {
      uint64_t word = floor_load(&watch->written[page / 64]), bit = (uint64_t)1 << (page % 64);
      if (!(word & bit)) break;
      floor_store(&watch->written[page / 64], word & ~bit);
      page++;
    }
    floor_check(
      floor_writeprotect(
        watch->uffd, watch->base + first * FLOOR_PAGE, (page - first) * FLOOR_PAGE, UFFDIO_WRITEPROTECT_MODE_WP),
      "UFFDIO_WRITEPROTECT");
    dirty += page - first;
  }
  return dirty;
}

double cfloor_collect(struct cfloor_watch *watch, size_t *dirty) {
  uint64_t start = cfloor_now();
  *dirty = watch->pagemap >= 0 ? scan(watch) : protect_runs(watch);
  return (double)(cfloor_now() - start) / ((double)watch->length / FLOOR_PAGE);
}
