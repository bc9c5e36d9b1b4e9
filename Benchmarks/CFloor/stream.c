#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <unistd.h>

#include "floor.h"

// What one operation in flight has left to write.
struct slot {
  uint64_t at, end;  // bytes from the start of the memory and of the file
};

struct stream {
  struct io_uring ring;
  struct slot *slots;
  uint64_t base, length, next;
  uint32_t write_bytes, in_flight;
  int fd;
};

static void queue(struct stream *stream, struct slot *slot) {
  // There are as many entries as slots, and each loop submits all of them.
  struct io_uring_sqe *entry = io_uring_get_sqe(&stream->ring);
  io_uring_prep_write(
    entry, stream->fd, floor_at(stream->base + slot->at), (uint32_t)(slot->end - slot->at), slot->at);
  io_uring_sqe_set_data(entry, slot);
  stream->in_flight++;
}

static void queue_next(struct stream *stream, struct slot *slot) {
  if (stream->next == stream->length) return;
  uint64_t rest = stream->length - stream->next;
  *slot = (struct slot){stream->next, stream->next + (rest < stream->write_bytes ? rest : stream->write_bytes)};
  stream->next = slot->end;
  queue(stream, slot);
}

// Returns 0 or -errno.
static int complete(struct stream *stream, const struct io_uring_cqe *entry) {
  struct slot *slot = io_uring_cqe_get_data(entry);
  stream->in_flight--;
  if (entry->res == 0) return -EIO;
  if (entry->res < 0 && entry->res != -EINTR && entry->res != -EAGAIN) return entry->res;
  if (entry->res > 0) slot->at += (uint64_t)entry->res;
  if (slot->at < slot->end) queue(stream, slot);
  else queue_next(stream, slot);
  return 0;
}

// The kernel writes the ring; and where liburing mapped it, a mapping may have been before whose end the thread sanitizer did not see.
__attribute__((no_sanitize("thread"))) static int run(struct stream *stream, uint32_t depth) {
  int error = 0;
  for (uint32_t i = 0; i < depth; i++) queue_next(stream, &stream->slots[i]);
  // After an error nothing new is queued, but what is in flight still reads the memory.
  while (stream->in_flight) {
    int submitted = io_uring_submit_and_wait(&stream->ring, 1);
    if (submitted < 0 && submitted != -EINTR && submitted != -EAGAIN) return submitted;
    unsigned head, seen = 0;
    struct io_uring_cqe *entry;
    io_uring_for_each_cqe(&stream->ring, head, entry) {
      seen++;
      if (error) stream->in_flight--;
      else error = complete(stream, entry);
    }
    io_uring_cq_advance(&stream->ring, seen);
  }
  return error;
}

int64_t cfloor_stream(uint64_t base, size_t pages, const char *path, uint32_t write_bytes, uint32_t depth, int direct) {
  if (!write_bytes || !depth) return -EINVAL;
  struct stream stream = {.base = base, .length = pages * FLOOR_PAGE, .write_bytes = write_bytes};
  stream.fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | (direct ? O_DIRECT : 0), 0600);
  if (stream.fd < 0) return -errno;
  uint64_t time = 0;
  int error = -ENOMEM;
  stream.slots = calloc(depth, sizeof *stream.slots);
  if (stream.slots) error = io_uring_queue_init(depth, &stream.ring, 0);
  if (!error) {
    uint64_t start = cfloor_now();
    error = run(&stream, depth);
    if (!error && fsync(stream.fd)) error = -errno;
    time = cfloor_now() - start;
    io_uring_queue_exit(&stream.ring);
  }
  free(stream.slots);
  close(stream.fd);
  return error < 0 ? error : (int64_t)time;
}
