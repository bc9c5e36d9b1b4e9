#include "cuffd_ring.h"

#include "cuffd_limit.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>

#include "cuffd_descriptor.h"
#include "cuffd_fault.h"
#include "cuffd_sys.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x40
#endif

// In milliseconds: how long a ring whose number is lost is waited for.
enum { lost_turns = 10000 };

struct cuffd_ring {
  struct io_uring ring;
  struct cuffd_identity identity;
  uint32_t generation;  // a child of fork() has the queues, too, and must leave them alone
  uint32_t in_flight;  // queued and not reaped
};

int cuffd_ring_create(uint32_t entries, struct cuffd_ring **out) {
  struct cuffd_ring *made = calloc(1, sizeof *made);
  if (!made) return -ENOMEM;
  int error = io_uring_queue_init(entries, &made->ring, 0);
  if (error < 0) {
    free(made);
    return error;
  }
  made->ring.ring_fd = made->ring.enter_ring_fd = cuffd_raise(made->ring.ring_fd);
  error = cuffd_identify(made->ring.ring_fd, &made->identity);
  if (error < 0) {
    io_uring_queue_exit(&made->ring);
    free(made);
    return error;
  }
  made->generation = cuffd_fork_generation();
  *out = made;
  return 0;
}

// Otherwise the number may be another ring's, of the program: what is queued there is not ours to submit.
static int is_own(const struct cuffd_ring *ring) { return cuffd_is(ring->ring.ring_fd, ring->identity); }

// A child of fork() shares the queues: what it changed there would be the parent's.
static int is_inherited(const struct cuffd_ring *ring) { return ring->generation != cuffd_fork_generation(); }

// What hands the ring's number to the kernel.
static int check(const struct cuffd_ring *ring) { return !is_own(ring) ? -EBADF : is_inherited(ring) ? -ECHILD : 0; }

static int take(struct cuffd_ring *ring, struct io_uring_sqe **out) {
  if (is_inherited(ring)) return -ECHILD;
  *out = io_uring_get_sqe(&ring->ring);
  return *out ? 0 : -EAGAIN;
}

uint32_t cuffd_ring_discard(struct cuffd_ring *ring) {
  if (is_inherited(ring)) return 0;
  // Without SQPOLL the kernel reads the queue only inside io_uring_enter: between calls its tail is ours to take back.
  struct io_uring_sq *queue = &ring->ring.sq;
  unsigned head = *queue->khead;
  uint32_t dropped = queue->sqe_tail - head;
  queue->sqe_head = queue->sqe_tail = head;
  *queue->ktail = head;
  ring->in_flight -= dropped;
  return dropped;
}

// The mappings keep a ring alive whose number was closed, and operations on files end in time. What waits for a pipe goes with the ring.
void cuffd_ring_settle(struct cuffd_ring *ring) {
  for (int turns = 0; ring->in_flight && !is_inherited(ring) && turns < lost_turns; turns++) {
    struct cuffd_completion entry;
    if (cuffd_ring_reap(ring, &entry, 1) == 0) cuffd_pause(1000000);
  }
}

// Closing a ring does not wait for its operations, and one that is still running writes into its buffer later. So: drop
// what was not submitted, cancel what can be cancelled, and wait for the rest.
void cuffd_ring_destroy(struct cuffd_ring *ring) {
  int inherited = is_inherited(ring), own = is_own(ring);
  if (inherited) ring->in_flight = 0;  // they are the parent's
  else cuffd_ring_discard(ring);
  if (!own) cuffd_ring_settle(ring);
  if (own && ring->in_flight) {
    struct io_uring_sync_cancel_reg all = {
      .fd = -1, .flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL, .timeout = {-1, -1}};
    io_uring_register_sync_cancel(&ring->ring, &all);  // Linux 6.0; older kernels only wait
  }
  while (own && ring->in_flight) {
    struct io_uring_cqe *entry;
    int error = io_uring_wait_cqe(&ring->ring, &entry);
    if (error == -EINTR) continue;
    if (error < 0) break;
    io_uring_cqe_seen(&ring->ring, entry);
    ring->in_flight--;
  }
  if (!own) ring->ring.ring_fd = ring->ring.enter_ring_fd = -1;
  io_uring_queue_exit(&ring->ring);
  free(ring);
}

int cuffd_ring_descriptor(struct cuffd_ring *ring) { return ring->ring.ring_fd; }
uint32_t cuffd_ring_entries(struct cuffd_ring *ring) { return ring->ring.sq.ring_entries; }
uint32_t cuffd_ring_in_flight(struct cuffd_ring *ring) { return ring->in_flight; }
uint32_t cuffd_ring_unsubmitted(struct cuffd_ring *ring) { return io_uring_sq_ready(&ring->ring); }

int cuffd_ring_read(struct cuffd_ring *ring, int fd, void *buffer, uint32_t length, uint64_t offset, uint64_t data) {
  struct io_uring_sqe *entry;
  int error = take(ring, &entry);
  if (error) return error;
  io_uring_prep_read(entry, fd, buffer, length, offset);
  entry->user_data = data;
  ring->in_flight++;
  return 0;
}

int cuffd_ring_write(
  struct cuffd_ring *ring, int fd, const void *buffer, uint32_t length, uint64_t offset, uint64_t data) {
  struct io_uring_sqe *entry;
  int error = take(ring, &entry);
  if (error) return error;
  io_uring_prep_write(entry, fd, buffer, length, offset);
  entry->user_data = data;
  ring->in_flight++;
  return 0;
}

int cuffd_ring_write_vectors(
  struct cuffd_ring *ring, int fd, const uint64_t *vectors, uint32_t count, uint64_t offset, int atomic, uint64_t data) {
  struct io_uring_sqe *entry;
  int error = take(ring, &entry);
  if (error) return error;
  // One piece needs no vector in the kernel.
  if (count == 1) io_uring_prep_write(entry, fd, (const void *)(uintptr_t)vectors[0], (uint32_t)vectors[1], offset);
  else io_uring_prep_writev(entry, fd, (const struct iovec *)vectors, count, offset);
  entry->rw_flags = atomic ? RWF_ATOMIC : 0;
  entry->user_data = data;
  ring->in_flight++;
  return 0;
}

int cuffd_ring_fsync(struct cuffd_ring *ring, int fd, int data_only, uint64_t data) {
  struct io_uring_sqe *entry;
  int error = take(ring, &entry);
  if (error) return error;
  io_uring_prep_fsync(entry, fd, data_only ? IORING_FSYNC_DATASYNC : 0);
  entry->user_data = data;
  ring->in_flight++;
  return 0;
}

int cuffd_ring_start_writeback(struct cuffd_ring *ring, int fd, uint64_t data) {
  struct io_uring_sqe *entry;
  int error = take(ring, &entry);
  if (error) return error;
  io_uring_prep_sync_file_range(entry, fd, 0, 0, SYNC_FILE_RANGE_WRITE);
  entry->user_data = data;
  ring->in_flight++;
  return 0;
}

static int submit(struct cuffd_ring *ring, uint32_t wait_for) {
  int error = check(ring);
  if (error) return error;
  // More than the completion queue holds never becomes visible at once.
  uint32_t most = ring->in_flight < ring->ring.cq.ring_entries ? ring->in_flight : ring->ring.cq.ring_entries;
  uint32_t wanted = wait_for < most ? wait_for : most;
  int submitted = 0;
  // One call may submit only a part, and a signal ends the wait of a call that submitted something without an error.
  do {
    int result = io_uring_submit_and_wait(&ring->ring, wanted);
    if (result == -EINTR) continue;
    if (result < 0) return submitted ? submitted : result;
    submitted += result;
  } while (io_uring_sq_ready(&ring->ring) || io_uring_cq_ready(&ring->ring) < wanted);
  return submitted;
}

int cuffd_ring_submit(struct cuffd_ring *ring, uint32_t wait_for) {
  // The kernel tries writes at once, on this thread, and sends it the signal of those that are beyond the limit.
  uint64_t held[17];
  int limited = cuffd_xfsz_is_limited();
  if (limited) cuffd_xfsz_hold(held);
  int result = submit(ring, wait_for);
  if (limited) cuffd_xfsz_release(held, 1);
  return result;
}

int cuffd_ring_reap(struct cuffd_ring *ring, struct cuffd_completion *out, int capacity) {
  struct io_uring_cqe *entry;
  int count = 0;
  if (is_inherited(ring)) return 0;
  while (count < capacity && io_uring_peek_cqe(&ring->ring, &entry) == 0) {
    int error = cuffd_inject_here(cuffd_call_completion);
    out[count++] = (struct cuffd_completion){entry->user_data, error ? error : entry->res, entry->flags};
    io_uring_cqe_seen(&ring->ring, entry);
    ring->in_flight--;
  }
  return count;
}

int cuffd_ring_read_fixed(
  struct cuffd_ring *ring, int fd, void *buffer, uint32_t length, uint64_t offset, uint32_t index, uint64_t data) {
  struct io_uring_sqe *entry;
  int error = take(ring, &entry);
  if (error) return error;
  io_uring_prep_read_fixed(entry, fd, buffer, length, offset, (int)index);
  entry->user_data = data;
  ring->in_flight++;
  return 0;
}

int cuffd_ring_write_fixed(
  struct cuffd_ring *ring, int fd, const void *buffer, uint32_t length, uint64_t offset, uint32_t index, uint64_t data) {
  struct io_uring_sqe *entry;
  int error = take(ring, &entry);
  if (error) return error;
  io_uring_prep_write_fixed(entry, fd, buffer, length, offset, (int)index);
  entry->user_data = data;
  ring->in_flight++;
  return 0;
}

int cuffd_ring_register_buffers(struct cuffd_ring *ring, const struct cuffd_buffer *buffers, uint32_t count) {
  int error = check(ring);
  if (error) return error;
  struct iovec *vectors = calloc(count, sizeof *vectors);
  if (!vectors) return -ENOMEM;
  for (uint32_t i = 0; i < count; i++) vectors[i] = (struct iovec){(void *)(uintptr_t)buffers[i].start, buffers[i].length};
  int result = io_uring_register_buffers(&ring->ring, vectors, count);
  free(vectors);
  return result;
}

int cuffd_ring_register_buffer(struct cuffd_ring *ring, void *buffer, uint64_t length) {
  int error = check(ring);
  if (error) return error;
  struct iovec vector = {buffer, length};
  return io_uring_register_buffers(&ring->ring, &vector, 1);
}

int cuffd_ring_unregister_buffers(struct cuffd_ring *ring) {
  int error = check(ring);
  return error ? error : io_uring_unregister_buffers(&ring->ring);
}
