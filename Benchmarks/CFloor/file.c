#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "floor.h"

int cfloor_file_make(const char *path, size_t pages) {
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return -errno;
  uint64_t page[FLOOR_PAGE / 8];
  for (size_t i = 0; i < pages; i++) {
    for (size_t word = 0; word < FLOOR_PAGE / 8; word++) page[word] = (i * 512 + word) * 0x9e3779b97f4a7c15u;
    if (write(fd, page, sizeof page) != sizeof page) {
      int error = errno ? -errno : -EIO;
      close(fd);
      return error;
    }
  }
  if (fsync(fd)) return -errno;
  return fd;
}

void cfloor_file_close(int fd) { close(fd); }

struct batch {
  struct io_uring ring;
  const uint64_t *runs;
  size_t count, next, in_flight;
  uint64_t base;
  int fd;
};

static void queue(struct batch *batch, uint64_t at, uint64_t end, uint64_t *left) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&batch->ring);
  io_uring_prep_write(entry, batch->fd, floor_at(batch->base + at), (uint32_t)(end - at), at);
  io_uring_sqe_set_data(entry, left);
  batch->in_flight++;
}

// A slot is what an operation in flight has left: a start and an end, in bytes.
static int run(struct batch *batch, uint64_t **free_slots, size_t free_count) {
  int error = 0;
  while (batch->in_flight || (!error && batch->next < batch->count)) {
    while (!error && free_count && batch->next < batch->count) {
      uint64_t *slot = free_slots[--free_count];
      slot[0] = batch->runs[2 * batch->next] * FLOOR_PAGE;
      slot[1] = slot[0] + batch->runs[2 * batch->next + 1] * FLOOR_PAGE;
      batch->next++;
      queue(batch, slot[0], slot[1], slot);
    }
    // Half of what is in flight: a wake-up serves many completions.
    int submitted = io_uring_submit_and_wait(&batch->ring, (unsigned)(batch->in_flight + 1) / 2);
    if (submitted < 0 && submitted != -EINTR && submitted != -EAGAIN) return submitted;
    struct io_uring_cqe *entry;
    while (io_uring_peek_cqe(&batch->ring, &entry) == 0) {
      uint64_t *slot = io_uring_cqe_get_data(entry);
      int result = entry->res;
      io_uring_cqe_seen(&batch->ring, entry);
      batch->in_flight--;
      if (result > 0) slot[0] += (uint64_t)result;
      else if (result != -EINTR && result != -EAGAIN) error = result ? result : -ENOSPC;
      if (slot[0] < slot[1] && !error) queue(batch, slot[0], slot[1], slot);
      else free_slots[free_count++] = slot;
    }
  }
  return error;
}

int64_t cfloor_file_write(int fd, uint64_t base, const uint64_t *runs, size_t count, uint32_t depth) {
  if (!depth) return -EINVAL;
  struct batch batch = {.runs = runs, .count = count, .base = base, .fd = fd};
  uint64_t *slots = calloc(depth, 2 * sizeof *slots), **free_slots = calloc(depth, sizeof *free_slots), time = 0;
  int error = slots && free_slots ? io_uring_queue_init(depth, &batch.ring, 0) : -ENOMEM;
  if (!error) {
    for (uint32_t i = 0; i < depth; i++) free_slots[i] = slots + 2 * i;
    uint64_t start = cfloor_now();
    error = run(&batch, free_slots, depth);
    if (!error && fdatasync(fd)) error = -errno;
    time = cfloor_now() - start;
    io_uring_queue_exit(&batch.ring);
  }
  free(free_slots);
  free(slots);
  return error < 0 ? error : (int64_t)time;
}

double cfloor_file_read(int fd, uint64_t buffer, const uint32_t *order, size_t count) {
  uint64_t start = cfloor_now();
  for (size_t i = 0; i < count; i++)
    if (pread(fd, floor_at(buffer), FLOOR_PAGE, (off_t)(order[i] * FLOOR_PAGE)) != (ssize_t)FLOOR_PAGE) return -EIO;
  return (double)(cfloor_now() - start) / (double)count;
}

double cfloor_file_mmap_read(int fd, size_t pages, const uint32_t *order, size_t count) {
  void *base = mmap(NULL, pages * FLOOR_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return -errno;
  double time = cfloor_read_pages((uint64_t)(uintptr_t)base, order, count);
  munmap(base, pages * FLOOR_PAGE);
  return time;
}
