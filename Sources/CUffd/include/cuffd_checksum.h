// XXH3 and a test for zeros; the hash's own header stays inside checksum.c.
#ifndef CUFFD_CHECKSUM_H
#define CUFFD_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

struct cuffd_checksum {
  uint64_t high;
  uint64_t low;
};

// XXH3-128 with seed 0.
struct cuffd_checksum cuffd_checksum(const void *_Nullable bytes, size_t length);
// Whether every byte is zero.
int cuffd_is_zero(const void *_Nullable bytes, size_t length);

#endif
