#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "floor.h"

struct cfloor_fill {
  uint64_t base, length, around;  // in bytes; one page more is mapped, whose fault ends the thread
  char *buffer;
  int file, uffd, core;
  pthread_t thread;
};

static void move_to(int core) {
  if (core < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  floor_check(!pthread_setaffinity_np(pthread_self(), sizeof set, &set), "pthread_setaffinity_np");
}

static void copy_in(const struct cfloor_fill *fill, uint64_t start, uint64_t length) {
  struct uffdio_copy copy = {.dst = start, .src = (uint64_t)(uintptr_t)fill->buffer, .len = length, .mode = UFFDIO_COPY_MODE_WP};
  if (!ioctl(fill->uffd, UFFDIO_COPY, &copy)) return;
  // Another message of the batch was of the same pages.
  floor_check(errno == EEXIST, "UFFDIO_COPY");
  struct uffdio_range range = {start, length};
  floor_check(!ioctl(fill->uffd, UFFDIO_WAKE, &range), "UFFDIO_WAKE");
}

static void *serve(void *raw) {
  struct cfloor_fill *fill = raw;
  move_to(fill->core);
  for (;;) {
    struct uffd_msg messages[16];
    ssize_t got = read(fill->uffd, messages, sizeof messages);
    for (ssize_t i = 0; i < got / (ssize_t)sizeof *messages; i++) {
      if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
      uint64_t address = messages[i].arg.pagefault.address & ~(FLOOR_PAGE - 1);
      if (address == fill->base + fill->length) {
        copy_in(fill, address, FLOOR_PAGE);
        return NULL;
      }
      uint64_t offset = (address - fill->base) & ~(fill->around - 1);
      uint64_t length = fill->length - offset < fill->around ? fill->length - offset : fill->around;
      floor_check(pread(fill->file, fill->buffer, length, (off_t)offset) == (ssize_t)length, "pread");
      copy_in(fill, fill->base + offset, length);
    }
  }
}

struct cfloor_fill *cfloor_fill_start(int fd, size_t pages, size_t around, int core) {
  struct cfloor_fill *fill = calloc(1, sizeof *fill);
  if (!fill) return NULL;
  *fill = (struct cfloor_fill){.length = pages * FLOOR_PAGE, .around = around * FLOOR_PAGE, .file = fd, .core = core};
  if (posix_memalign((void **)&fill->buffer, FLOOR_PAGE, fill->around)) {
    free(fill);
    errno = ENOMEM;
    return NULL;
  }
  for (uint64_t i = 0; i < fill->around; i++) fill->buffer[i] = 0;
  fill->base = cfloor_map_shared(pages + 1, 0, 0);
  fill->uffd = floor_open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
  struct uffdio_register arg = {
    .range = {fill->base, fill->length + FLOOR_PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
  floor_check(!ioctl(fill->uffd, UFFDIO_REGISTER, &arg), "UFFDIO_REGISTER");
  floor_check(!pthread_create(&fill->thread, NULL, serve, fill), "pthread_create");
  return fill;
}

double cfloor_fill_read(struct cfloor_fill *fill, const uint32_t *order, size_t count, int core) {
  cpu_set_t before;
  floor_check(!pthread_getaffinity_np(pthread_self(), sizeof before, &before), "pthread_getaffinity_np");
  move_to(core);
  double time = cfloor_read_pages(fill->base, order, count);
  pthread_setaffinity_np(pthread_self(), sizeof before, &before);
  return time;
}

void cfloor_fill_forget(struct cfloor_fill *fill) {
  floor_check(!madvise(floor_at(fill->base), fill->length, MADV_REMOVE), "MADV_REMOVE");
}

uint64_t cfloor_fill_base(const struct cfloor_fill *fill) { return fill->base; }

void cfloor_fill_stop(struct cfloor_fill *fill) {
  (void)*(volatile uint64_t *)floor_at(fill->base + fill->length);
  pthread_join(fill->thread, NULL);
  close(fill->uffd);
  cfloor_unmap(fill->base, fill->length / FLOOR_PAGE + 1);
  free(fill->buffer);
  free(fill);
}
