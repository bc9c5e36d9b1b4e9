#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "floor.h"

double cfloor_count_up_down(size_t count) {
  static _Atomic uint64_t word;
  uint64_t start = cfloor_now();
  for (size_t i = 0; i < count; i++) {
    atomic_fetch_add(&word, 1);
    atomic_fetch_sub(&word, 1);
  }
  return (double)(cfloor_now() - start) / (double)count;
}

double cfloor_count_words(size_t words, size_t count) {
  static _Atomic uint64_t word[4096];
  uint64_t start = cfloor_now();
  for (size_t i = 0; i < count; i++) {
    for (size_t at = 0; at < words; at++) atomic_fetch_add(&word[at & 4095], 1);
    for (size_t at = 0; at < words; at++) atomic_fetch_sub(&word[at & 4095], 1);
  }
  return (double)(cfloor_now() - start) / (double)count / (double)words;
}

struct cfloor_fixed {
  struct io_uring ring;
  uint64_t base, bytes;
};

int cfloor_fixed_start(uint64_t base, uint64_t bytes, struct cfloor_fixed **out) {
  struct cfloor_fixed *fixed = calloc(1, sizeof *fixed);
  if (!fixed) return -ENOMEM;
  fixed->base = base;
  fixed->bytes = bytes;
  int result = io_uring_queue_init(64, &fixed->ring, 0);
  if (result == 0) {
    struct iovec vector = {floor_at(base), bytes};
    result = io_uring_register_buffers(&fixed->ring, &vector, 1);
    if (result < 0) io_uring_queue_exit(&fixed->ring);
  }
  if (result < 0) {
    free(fixed);
    return result;
  }
  *out = fixed;
  return 0;
}

void cfloor_fixed_stop(struct cfloor_fixed *fixed) {
  io_uring_unregister_buffers(&fixed->ring);
  io_uring_queue_exit(&fixed->ring);
  free(fixed);
}

int cfloor_fixed_read(struct cfloor_fixed *fixed, int fd, size_t block, size_t depth, size_t count, double *ns) {
  uint64_t start = cfloor_now();
  for (size_t done = 0; done < count; done += depth) {
    for (size_t i = 0; i < depth; i++) {
      struct io_uring_sqe *entry = io_uring_get_sqe(&fixed->ring);
      if (!entry) return -EAGAIN;
      uint64_t at = (done + i) * block % fixed->bytes;
      io_uring_prep_read_fixed(entry, fd, floor_at(fixed->base + at), (unsigned)block, at, 0);
    }
    int result = io_uring_submit_and_wait(&fixed->ring, (unsigned)depth);
    if (result < 0) return result;
    for (size_t i = 0; i < depth; i++) {
      struct io_uring_cqe *entry;
      result = io_uring_wait_cqe(&fixed->ring, &entry);
      if (result < 0) return result;
      if (entry->res != (int)block) return entry->res < 0 ? entry->res : -EIO;
      io_uring_cqe_seen(&fixed->ring, entry);
    }
  }
  *ns = (double)(cfloor_now() - start) / (double)count;
  return 0;
}

int cfloor_pread(uint64_t base, uint64_t bytes, int fd, size_t block, size_t count, double *ns) {
  uint64_t start = cfloor_now();
  for (size_t done = 0; done < count; done++) {
    uint64_t at = done * block % bytes;
    ssize_t got = pread(fd, floor_at(base + at), block, (off_t)at);
    if (got != (ssize_t)block) return got < 0 ? -errno : -EIO;
  }
  *ns = (double)(cfloor_now() - start) / (double)count;
  return 0;
}

int cfloor_full_file(uint64_t bytes) {
  int fd = memfd_create("cfloor", MFD_CLOEXEC);
  if (fd < 0) return -errno;
  char block[65536];
  memset(block, 7, sizeof block);
  for (uint64_t at = 0; at < bytes; at += sizeof block) {
    if (pwrite(fd, block, sizeof block, (off_t)at) != (ssize_t)sizeof block) {
      close(fd);
      return -ENOSPC;
    }
  }
  return fd;
}

void cfloor_close(int fd) { close(fd); }
