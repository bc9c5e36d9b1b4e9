// What a device pays for a split virtqueue in memory that it reaches by a plain pointer.
#ifndef CFLOOR_VRING_H
#define CFLOOR_VRING_H

#include <stddef.h>
#include <stdint.h>

// Rings by byte offsets into `memory`, which is also what descriptors' addresses are offsets into.
struct cfloor_vring {
  uint64_t memory, bytes;
  uint64_t descriptors, available, used;
  // Entries, a power of two.
  uint32_t size;
};

// Clears the indices and fills the table with chains of two: one buffer to read, one to write.
void cfloor_vring_start(const struct cfloor_vring *_Nonnull ring);
// Makes all size / 2 chains available again. Only when the device has used the ones before.
void cfloor_vring_post(const struct cfloor_vring *_Nonnull ring);
// The device: takes every chain there is, up to 16 at a time, checks each field of it, and puts it into the used ring. *next: how many
// chains were taken since the start. Returns how many descriptors were served, -EPROTO where a check fails.
int64_t cfloor_vring_serve(const struct cfloor_vring *_Nonnull ring, uint16_t *_Nonnull next);
// The used index.
uint16_t cfloor_vring_used(const struct cfloor_vring *_Nonnull ring);

#endif
