#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "floor.h"

#define CHUNK ((uint64_t)1 << 20)

// In the child of a process with many threads: system calls and nothing else. Returns errno.
static int write_all(uint64_t at, uint64_t end, int fd) {
  while (at < end) {
    ssize_t done = write(fd, floor_at(at), end - at < CHUNK ? end - at : CHUNK);
    if (done > 0) at += (uint64_t)done;
    else if (done == 0) return EIO;
    else if (errno != EINTR) return errno;
  }
  return 0;
}

FLOOR_IN_CHILD int64_t cfloor_fork_snapshot(uint64_t base, size_t pages, int fd, int32_t *child) {
  uint64_t start = cfloor_now();
  pid_t forked = floor_fork();
  if (forked == 0) {
    floor_keep_only(fd);
    // Linux's errno values fit an exit status.
    floor_exit(write_all(base, base + pages * FLOOR_PAGE, fd));
  }
  uint64_t time = cfloor_now() - start;
  if (forked < 0) return forked;
  *child = forked;
  return (int64_t)time;
}

int cfloor_fork_wait(int32_t child) {
  int status, error = floor_reap(child, &status);
  if (error < 0) return error;
  return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

// The whole of a small file of /proc, in one go so that its figures belong together. 0 or -errno.
static int read_proc(int32_t child, const char *name, char *text, size_t capacity) {
  char path[64];
  if (child) snprintf(path, sizeof path, "/proc/%d/%s", child, name);
  else snprintf(path, sizeof path, "/proc/self/%s", name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT ? -ESRCH : -errno;
  size_t count = 0;
  ssize_t got = 1;
  while (got > 0 && count < capacity - 1) {
    got = read(fd, text + count, capacity - 1 - count);
    if (got > 0) count += (size_t)got;
  }
  int error = got < 0 ? -errno : 0;
  close(fd);
  text[count] = 0;
  // A zombie has no memory and no rows.
  return error < 0 ? error : count ? 0 : -ESRCH;
}

static int bytes_of(const char *text, const char *key, uint64_t *out) {
  const char *row = strstr(text, key);
  if (!row) return -ESRCH;
  *out += strtoull(row + strlen(key), NULL, 10) * 1024;
  return 0;
}

int cfloor_footprint_of(int32_t child, struct cfloor_footprint *out) {
  char text[8192];
  *out = (struct cfloor_footprint){0};
  int error = read_proc(child, "smaps_rollup", text, sizeof text);
  if (!error) error = bytes_of(text, "\nRss:", &out->resident);
  if (!error) error = bytes_of(text, "\nPss:", &out->proportional);
  if (!error) error = bytes_of(text, "\nPrivate_Clean:", &out->unshared);
  if (!error) error = bytes_of(text, "\nPrivate_Dirty:", &out->unshared);
  if (!error) error = read_proc(child, "status", text, sizeof text);
  if (!error) error = bytes_of(text, "\nVmPTE:", &out->page_tables);
  return error;
}
