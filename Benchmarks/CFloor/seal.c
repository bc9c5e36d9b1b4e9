#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "floor.h"

static int change(uint64_t page, int rights) { return mprotect(floor_at(page), FLOOR_PAGE, rights) ? -errno : 0; }

int cfloor_forbid_page(uint64_t page) { return change(page, PROT_NONE); }
int cfloor_allow_page(uint64_t page) { return change(page, PROT_READ | PROT_WRITE); }

int64_t cfloor_read_process(pid_t process, uint64_t address, void *buffer, size_t count) {
  struct iovec here = {buffer, count}, there = {floor_at(address), count};
  ssize_t got = process_vm_readv(process, &here, 1, &there, 1, 0);
  return got < 0 ? -errno : got;
}

static int matches(const uint8_t *at, const uint8_t *needle, size_t length, uint8_t mask) {
  for (size_t i = 0; i < length; i++)
    if ((at[i] ^ mask) != needle[i]) return 0;
  return 1;
}

size_t cfloor_find_masked(const void *bytes, size_t count, const uint8_t *needle, size_t length, uint8_t mask) {
  size_t hits = 0;
  if (count < length) return 0;
  const uint8_t *at = bytes, *last = at + count - length;
  while (at <= last && (at = memchr(at, needle[0] ^ mask, (size_t)(last - at) + 1))) {
    hits += (size_t)matches(at, needle, length, mask);
    at++;
  }
  return hits;
}
