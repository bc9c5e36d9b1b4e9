// Memory that is swapped out.
#include "CTestSupport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/swap.h>
#include <unistd.h>

enum { page = 4096 };

int ct_swap_on(const char *path, long bytes) {
  static unsigned char block[page];
  int file = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) return -errno;
  int error = 0;
  for (long at = 0; at < bytes && !error; at += page)
    if (pwrite(file, block, page, at) != page) error = -errno;
  // The header of mkswap(8): the version and the last page behind 1 KiB of room for a boot block, the magic at the page's end.
  unsigned char header[page] = {0};
  uint32_t facts[] = {1, (uint32_t)(bytes / page) - 1, 0};
  memcpy(header + 1024, facts, sizeof facts);
  memcpy(header + page - 10, "SWAPSPACE2", 10);
  if (!error && pwrite(file, header, page, 0) != page) error = -errno;
  if (!error && fsync(file)) error = -errno;
  close(file);
  if (!error && swapon(path, 0)) error = -errno;
  if (error) unlink(path);
  return error;
}

int ct_swap_off(const char *path) {
  int error = swapoff(path) ? -errno : 0;
  unlink(path);
  return error;
}
