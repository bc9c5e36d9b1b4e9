#include <errno.h>
#include <linux/virtio_ring.h>

#include "floor.h"

#define BATCH 16
#define MOST 1024

// Where a device would go on from: what it has checked.
struct segment {
  uint64_t address;
  uint64_t length;
};

static struct vring_desc *table(const struct cfloor_vring *ring) { return floor_at(ring->memory + ring->descriptors); }
static struct vring_avail *available(const struct cfloor_vring *ring) { return floor_at(ring->memory + ring->available); }
static struct vring_used *used(const struct cfloor_vring *ring) { return floor_at(ring->memory + ring->used); }

void cfloor_vring_start(const struct cfloor_vring *ring) {
  for (uint32_t i = 0; i < ring->size; i += 2) {
    table(ring)[i] = (struct vring_desc){ring->bytes - 4096, 64, VRING_DESC_F_NEXT, (uint16_t)(i + 1)};
    table(ring)[i + 1] = (struct vring_desc){ring->bytes - 2048, 64, VRING_DESC_F_WRITE, 0};
  }
  available(ring)->flags = used(ring)->flags = 0;
  __atomic_store_n(&available(ring)->idx, 0, __ATOMIC_RELEASE);
  __atomic_store_n(&used(ring)->idx, 0, __ATOMIC_RELEASE);
}

void cfloor_vring_post(const struct cfloor_vring *ring) {
  struct vring_avail *ours = available(ring);
  uint16_t next = ours->idx;
  for (uint32_t i = 0; i < ring->size / 2; i++) ours->ring[(uint16_t)(next + i) & (ring->size - 1)] = (uint16_t)(2 * i);
  __atomic_store_n(&ours->idx, (uint16_t)(next + ring->size / 2), __ATOMIC_RELEASE);
}

uint16_t cfloor_vring_used(const struct cfloor_vring *ring) { return __atomic_load_n(&used(ring)->idx, __ATOMIC_ACQUIRE); }

// Returns how many segments the chain has, or -EPROTO.
static int64_t walk(const struct cfloor_vring *ring, uint16_t head, struct segment *segments) {
  uint32_t count = 0, readable = 0;
  uint64_t total = 0;
  for (uint16_t index = head;;) {
    if (index >= ring->size || count >= ring->size) return -EPROTO;
    struct vring_desc entry = table(ring)[index];
    if (entry.flags & VRING_DESC_F_INDIRECT) return -EPROTO;
    if (entry.addr > ring->bytes || entry.len > ring->bytes - entry.addr) return -EPROTO;
    if (!(entry.flags & VRING_DESC_F_WRITE) && readable++ != count) return -EPROTO;
    total += entry.len;
    if (total > (uint64_t)1 << 32) return -EPROTO;
    segments[count++] = (struct segment){entry.addr, entry.len};
    if (!(entry.flags & VRING_DESC_F_NEXT)) return count;
    index = entry.next;
  }
}

int64_t cfloor_vring_serve(const struct cfloor_vring *ring, uint16_t *next) {
  static _Thread_local struct segment segments[2 * MOST];
  uint16_t heads[BATCH];
  int64_t served = 0;
  if (ring->size > MOST) return -EINVAL;
  for (;;) {
    uint16_t index = __atomic_load_n(&available(ring)->idx, __ATOMIC_ACQUIRE);
    uint16_t waiting = (uint16_t)(index - *next);
    if (waiting > ring->size) return -EPROTO;
    if (waiting == 0) return served;
    uint32_t taken = 0, filled = 0;
    for (; taken < waiting && taken < BATCH && filled <= ring->size; taken++) {
      heads[taken] = available(ring)->ring[(uint16_t)(*next + taken) & (ring->size - 1)];
      int64_t count = walk(ring, heads[taken], segments + filled);
      if (count < 0) return count;
      filled += (uint32_t)count;
    }
    // The segments are needed, as far as the compiler knows.
    __asm__ volatile("" : : "r"(segments) : "memory");
    for (uint32_t i = 0; i < taken; i++)
      used(ring)->ring[(uint16_t)(*next + i) & (ring->size - 1)] = (struct vring_used_elem){heads[i], 0};
    *next = (uint16_t)(*next + taken);
    __atomic_store_n(&used(ring)->idx, *next, __ATOMIC_RELEASE);
    served += filled;
  }
}
