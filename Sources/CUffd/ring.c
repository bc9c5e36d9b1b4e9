#include "cuffd_ring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

struct cuffd_ring {
  struct io_uring ring;
};

int cuffd_ring_create(uint32_t entries, struct cuffd_ring **out) {
  struct cuffd_ring *made = calloc(1, sizeof *made);
  if (!made) return -ENOMEM;
  int error = io_uring_queue_init(entries, &made->ring, 0);
  if (error < 0) {
    free(made);
    return error;
  }
  *out = made;
  return 0;
}

void cuffd_ring_destroy(struct cuffd_ring *ring) {
  io_uring_queue_exit(&ring->ring);
  free(ring);
}

int cuffd_ring_descriptor(struct cuffd_ring *ring) { return ring->ring.ring_fd; }

int cuffd_ring_read(struct cuffd_ring *ring, int fd, void *buffer, uint32_t length, uint64_t offset, uint64_t data) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
  if (!entry) return -EAGAIN;
  io_uring_prep_read(entry, fd, buffer, length, offset);
  entry->user_data = data;
  return 0;
}

int cuffd_ring_write(
  struct cuffd_ring *ring, int fd, const void *buffer, uint32_t length, uint64_t offset, uint64_t data) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
  if (!entry) return -EAGAIN;
  io_uring_prep_write(entry, fd, buffer, length, offset);
  entry->user_data = data;
  return 0;
}

int cuffd_ring_fsync(struct cuffd_ring *ring, int fd, int data_only, uint64_t data) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
  if (!entry) return -EAGAIN;
  io_uring_prep_fsync(entry, fd, data_only ? IORING_FSYNC_DATASYNC : 0);
  entry->user_data = data;
  return 0;
}

int cuffd_ring_submit(struct cuffd_ring *ring, uint32_t wait_for) {
  return io_uring_submit_and_wait(&ring->ring, wait_for);
}

int cuffd_ring_reap(struct cuffd_ring *ring, struct cuffd_completion *out, int capacity) {
  struct io_uring_cqe *entry;
  int count = 0;
  while (count < capacity && io_uring_peek_cqe(&ring->ring, &entry) == 0) {
    out[count++] = (struct cuffd_completion){entry->user_data, entry->res, entry->flags};
    io_uring_cqe_seen(&ring->ring, entry);
  }
  return count;
}

int cuffd_ring_register_buffer(struct cuffd_ring *ring, void *buffer, uint64_t length) {
  struct iovec vector = {buffer, length};
  return io_uring_register_buffers(&ring->ring, &vector, 1);
}

int cuffd_ring_unregister_buffers(struct cuffd_ring *ring) { return io_uring_unregister_buffers(&ring->ring); }
