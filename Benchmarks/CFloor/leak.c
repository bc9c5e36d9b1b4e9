#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "floor.h"

#define TEXT 16
#define HUGE_PAGES 512

static const char public_text[TEXT] = "public", secret_text[TEXT] = "secret";

// Each side closes the ends that are the other's: a read must end when who should answer has died.
struct pipes {
  int spliced[2];
  int go[2];      // closed by the parent once it has written the secret
  int report[2];  // from the child: an errno once it has spliced and unmapped, then what it read
};

static ssize_t read_full(int fd, void *buffer, size_t length) {
  size_t count = 0;
  while (count < length) {
    ssize_t got = read(fd, (char *)buffer + count, length - count);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -errno;
    if (got == 0) break;
    count += (size_t)got;
  }
  return (ssize_t)count;
}

// In the child.
static _Noreturn void attack(uint64_t base, uint64_t length, const struct pipes *pipes) {
  close(pipes->go[1]);
  close(pipes->report[0]);
  struct iovec page = {floor_at(base), FLOOR_PAGE};
  int32_t error = 0;
  ssize_t spliced = vmsplice(pipes->spliced[1], &page, 1, 0);
  if (spliced < 0) error = -errno;
  else if (spliced != FLOOR_PAGE) error = -EIO;
  else if (munmap(floor_at(base), length)) error = -errno;
  if (write(pipes->report[1], &error, sizeof error) != sizeof error || error) floor_exit(1);
  char seen[TEXT], byte;
  read_full(pipes->go[0], &byte, 1);
  if (read_full(pipes->spliced[0], seen, TEXT) != TEXT) floor_exit(1);
  floor_exit(write(pipes->report[1], seen, TEXT) != TEXT);
}

static int close_end(int *fd) {
  int old = *fd;
  *fd = -1;
  return old < 0 ? 0 : close(old);
}

// The parent's side, once the child runs. 0 or -errno.
static int defend(uint64_t base, struct pipes *pipes, char *seen) {
  int32_t error;
  close_end(&pipes->report[1]);
  ssize_t got = read_full(pipes->report[0], &error, sizeof error);
  if (got < 0) return (int)got;
  if (got != sizeof error) return -EPIPE;
  if (error < 0) return error;
  for (size_t i = 0; i < TEXT; i++) ((volatile char *)floor_at(base))[i] = secret_text[i];
  close_end(&pipes->go[1]);
  got = read_full(pipes->report[0], seen, TEXT);
  if (got < 0) return (int)got;
  return got == TEXT ? 0 : -EPIPE;
}

static int attempt(uint64_t base, uint64_t length, char *seen) {
  struct pipes pipes = {{-1, -1}, {-1, -1}, {-1, -1}};
  int error = pipe2(pipes.spliced, O_CLOEXEC) || pipe2(pipes.go, O_CLOEXEC) || pipe2(pipes.report, O_CLOEXEC) ? -errno : 0;
  if (!error) {
    pid_t child = floor_fork();
    if (child == 0) attack(base, length, &pipes);
    error = child < 0 ? child : defend(base, &pipes, seen);
    if (child > 0) {
      int status;
      kill(child, SIGKILL);
      int reaped = floor_reap(child, &status);
      if (!error) error = reaped;
    }
  }
  for (int i = 0; i < 2; i++) {
    close_end(&pipes.spliced[i]);
    close_end(&pipes.go[i]);
    close_end(&pipes.report[i]);
  }
  return error;
}

int cfloor_leak(int memory, char *seen, size_t capacity) {
  char text[TEXT] = {0};
  size_t pages = memory == cfloor_leak_huge ? HUGE_PAGES : 1;
  uint64_t base = memory == cfloor_leak_shared ? cfloor_map_shared(pages, 0, 1) : cfloor_map(pages, pages > 1, 1);
  memcpy(floor_at(base), public_text, TEXT);
  int64_t huge = pages > 1 ? cfloor_huge_pages(base, pages) : 0;
  int error = huge < 0 ? (int)huge : pages > 1 && (size_t)huge < pages ? -EOPNOTSUPP : attempt(base, pages * FLOOR_PAGE, text);
  cfloor_unmap(base, pages);
  for (size_t i = 0; i < capacity; i++) seen[i] = i < TEXT && i + 1 < capacity ? text[i] : 0;
  if (error < 0) return error;
  if (!memcmp(text, secret_text, TEXT)) return 1;
  return memcmp(text, public_text, TEXT) ? -EBADMSG : 0;
}
