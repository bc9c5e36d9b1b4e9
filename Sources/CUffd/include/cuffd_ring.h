// liburing's inline functions, so that its headers stay out of Swift.
#ifndef CUFFD_RING_H
#define CUFFD_RING_H

#include <stdint.h>

struct cuffd_ring;
struct cuffd_completion {
  uint64_t user_data;
  int32_t result;  // bytes, or -errno
  uint32_t flags;
};

// Creates a ring of `entries`; -errno on failure.
int cuffd_ring_create(uint32_t entries, struct cuffd_ring *_Nullable *_Nonnull out);
// Cancels what can be cancelled and waits for the rest: no operation touches its buffer afterwards.
void cuffd_ring_destroy(struct cuffd_ring *_Nonnull ring);
// Takes the completions of a ring whose number is lost until nothing is in flight, for at most 10 s. What was queued only must be dropped before.
void cuffd_ring_settle(struct cuffd_ring *_Nonnull ring);
int cuffd_ring_descriptor(struct cuffd_ring *_Nonnull ring);
// The size of the submission queue; operations that were queued and not reaped; those of them not yet submitted.
uint32_t cuffd_ring_entries(struct cuffd_ring *_Nonnull ring);
uint32_t cuffd_ring_in_flight(struct cuffd_ring *_Nonnull ring);
uint32_t cuffd_ring_unsubmitted(struct cuffd_ring *_Nonnull ring);
// Drops what was queued and not submitted; returns how many.
uint32_t cuffd_ring_discard(struct cuffd_ring *_Nonnull ring);
// Queue one operation; -EAGAIN when the submission queue is full, -ECHILD in a child of fork(), which shares the queues and leaves them alone:
// nothing is dropped or reaped there either.
int cuffd_ring_read(
  struct cuffd_ring *_Nonnull ring, int fd, void *_Nonnull buffer, uint32_t length, uint64_t offset, uint64_t data);
int cuffd_ring_write(
  struct cuffd_ring *_Nonnull ring, int fd, const void *_Nonnull buffer, uint32_t length, uint64_t offset, uint64_t data);
// The same of several pieces of memory: `vectors` are pairs of address and length, as of struct iovec. atomic: RWF_ATOMIC.
int cuffd_ring_write_vectors(
  struct cuffd_ring *_Nonnull ring, int fd, const uint64_t *_Nonnull vectors, uint32_t count, uint64_t offset, int atomic,
  uint64_t data);
int cuffd_ring_fsync(struct cuffd_ring *_Nonnull ring, int fd, int data_only, uint64_t data);
// Has the kernel begin to write the file's dirty pages to the device; promises nothing about when they are there.
int cuffd_ring_start_writeback(struct cuffd_ring *_Nonnull ring, int fd, uint64_t data);
// Submits what is queued and waits until `wait_for` completions can be reaped (all of them, if fewer are in flight);
// returns how many were submitted, or -errno. Signals do not end it.
int cuffd_ring_submit(struct cuffd_ring *_Nonnull ring, uint32_t wait_for);
// Takes up to `capacity` completions without waiting.
int cuffd_ring_reap(struct cuffd_ring *_Nonnull ring, struct cuffd_completion *_Nonnull out, int capacity);
// Queue one operation on registered buffer `index`, which holds all of `buffer`.
int cuffd_ring_read_fixed(
  struct cuffd_ring *_Nonnull ring, int fd, void *_Nonnull buffer, uint32_t length, uint64_t offset, uint32_t index,
  uint64_t data);
int cuffd_ring_write_fixed(
  struct cuffd_ring *_Nonnull ring, int fd, const void *_Nonnull buffer, uint32_t length, uint64_t offset,
  uint32_t index, uint64_t data);
struct cuffd_buffer {
  uint64_t start;
  uint64_t length;
};
// Registers several, numbered from 0.
int cuffd_ring_register_buffers(
  struct cuffd_ring *_Nonnull ring, const struct cuffd_buffer *_Nonnull buffers, uint32_t count);
// Registers one buffer as a fixed buffer (the kernel's long-term pin) / removes all.
int cuffd_ring_register_buffer(struct cuffd_ring *_Nonnull ring, void *_Nonnull buffer, uint64_t length);
int cuffd_ring_unregister_buffers(struct cuffd_ring *_Nonnull ring);

#endif
