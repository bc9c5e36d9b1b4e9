#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "floor.h"

struct cfloor_cow {
  uint64_t base;
  size_t pages;
  int huge;
};

FLOOR_IN_CHILD pid_t floor_fork(void) {
  pid_t child = (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0);
  return child < 0 ? -errno : child;
}

FLOOR_IN_CHILD void floor_keep_only(int fd) {
  if (fd > 0) syscall(SYS_close_range, 0, fd - 1, 0);
  syscall(SYS_close_range, fd + 1, ~0u, 0);
}

// Not through the C library: a sanitizer has a say there, and waits for threads that the child does not have.
FLOOR_IN_CHILD _Noreturn void floor_exit(int status) {
  for (;;) syscall(SYS_exit_group, status);
}

int floor_reap(pid_t child, int *status) {
  while (waitpid(child, status, __WALL) < 0)
    if (errno != EINTR) return -errno;
  return 0;
}

static int restore(const struct cfloor_cow *cow) {
  uint64_t length = cow->pages * FLOOR_PAGE;
  // The first write to a huge page that is shared splits it, and it stays split: only new memory is huge again.
  if (cow->huge && madvise(floor_at(cow->base), length, MADV_DONTNEED)) return -errno;
  // Breaks what sharing or protection is left, as a write to each page would, without a trap for each.
  while (madvise(floor_at(cow->base), length, MADV_POPULATE_WRITE))
    if (errno != EINTR && errno != EAGAIN) return -errno;
  if (!cow->huge) return 0;
  int64_t huge = cfloor_huge_pages(cow->base, cow->pages);
  if (huge < 0) return (int)huge;
  return (size_t)huge == cow->pages ? 0 : -EOPNOTSUPP;
}

int cfloor_cow_open(size_t pages, int huge, struct cfloor_cow **out) {
  struct cfloor_cow *made = calloc(1, sizeof *made);
  if (!made) return -ENOMEM;
  *made = (struct cfloor_cow){cfloor_map(pages, huge, 0), pages, huge};
  int error = restore(made);
  if (error < 0) cfloor_cow_close(made);
  else *out = made;
  return error;
}

void cfloor_cow_close(struct cfloor_cow *cow) {
  cfloor_unmap(cow->base, cow->pages);
  free(cow);
}

FLOOR_IN_CHILD int64_t cfloor_cow_pause(struct cfloor_cow *cow) {
  int error = restore(cow), status;
  if (error < 0) return error;
  uint64_t start = cfloor_now();
  pid_t child = floor_fork();
  if (child == 0) floor_exit(0);
  uint64_t time = cfloor_now() - start;
  if (child < 0) return child;
  error = floor_reap(child, &status);
  return error < 0 ? error : (int64_t)time;
}

FLOOR_IN_CHILD int64_t cfloor_cow_stall(struct cfloor_cow *cow) {
  struct cfloor_writer *writer;
  int error = restore(cow), status;
  if (error < 0) return error;
  error = cfloor_writer_open(cow->base, cow->pages, &writer);
  if (error < 0) return error;
  cfloor_writer_begin(writer);
  pid_t child = floor_fork();
  if (child == 0) floor_exit(0);
  int64_t longest = cfloor_writer_longest(writer);
  cfloor_writer_close(writer);
  if (child < 0) return child;
  error = floor_reap(child, &status);
  return error < 0 ? error : longest;
}

// A child that sleeps and shares all memory.
struct sharer {
  pid_t child;
  int gate;  // the child reads its other end; nothing is ever written
};

FLOOR_IN_CHILD static int share(struct sharer *out) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return -errno;
  pid_t child = floor_fork();
  if (child == 0) {
    // With no copy of the parent's end here, a parent that dies ends the read.
    floor_keep_only(ends[0]);
    char byte;
    while (read(ends[0], &byte, 1) < 0 && errno == EINTR) {}
    floor_exit(0);
  }
  close(ends[0]);
  if (child < 0) close(ends[1]);
  *out = (struct sharer){child, ends[1]};
  return child < 0 ? child : 0;
}

// Returns once the child's page tables are gone.
static int unshare_all(struct sharer *sharer) {
  int status;
  kill(sharer->child, SIGKILL);
  int error = floor_reap(sharer->child, &status);
  close(sharer->gate);
  return error;
}

static int64_t time_writes(struct cfloor_cow *cow, const uint32_t *order, size_t count) {
  uint64_t start = cfloor_now();
  floor_write_pages(cow->base, order, count);
  return (int64_t)(cfloor_now() - start);
}

int64_t cfloor_cow_copy(struct cfloor_cow *cow, const uint32_t *order, size_t count) {
  struct sharer sharer;
  int error = restore(cow);
  if (!error) error = share(&sharer);
  if (error < 0) return error;
  int64_t time = time_writes(cow, order, count);
  error = unshare_all(&sharer);
  return error < 0 ? error : time;
}

int64_t cfloor_cow_reuse(struct cfloor_cow *cow, const uint32_t *order, size_t count) {
  struct sharer sharer;
  int error = restore(cow);
  if (!error) error = share(&sharer);
  if (!error) error = unshare_all(&sharer);
  return error < 0 ? error : time_writes(cow, order, count);
}
