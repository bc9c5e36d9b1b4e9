#include "cuffd_checksum.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

struct cuffd_checksum cuffd_checksum(const void *bytes, size_t length) {
  XXH128_hash_t hash = XXH3_128bits(bytes, length);
  return (struct cuffd_checksum){hash.high64, hash.low64};
}

int cuffd_is_zero(const void *bytes, size_t length) {
  // Most pages that are not zero show it at once; the rest is compared with itself, which libc does with the widest vectors.
  enum { head = 64 };
  const unsigned char *at = bytes;
  for (size_t i = 0; i < length && i < head; i++)
    if (at[i]) return 0;
  return length <= head || memcmp(at, at + head, length - head) == 0;
}
