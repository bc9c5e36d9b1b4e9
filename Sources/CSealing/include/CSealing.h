// AES-256-GCM on memory of the caller's: nothing is allocated, and no byte of a key or of a page is kept anywhere else.
#ifndef CSEALING_H
#define CSEALING_H

#include <stddef.h>
#include <stdint.h>

enum {
  cseal_key_bytes = 32,
  cseal_nonce_bytes = 12,
  cseal_tag_bytes = 16,
  cseal_line_bytes = 64,
};

// How many bytes an expanded key takes; aligned to 64.
size_t cseal_schedule_bytes(void);
// Expands a key into `schedule`, which is the only secret that the calls below need. 1, or 0 if it cannot be done.
int cseal_expand(void *_Nonnull schedule, const uint8_t *_Nonnull key);

// What the calls below would allocate for this thread, some of it when an opening fails for the first time, is allocated here. Cheap when
// called again.
void cseal_prepare_thread(void);

// Seals `count` bytes in place and writes the tag. 1, or 0 with the bytes as they were.
int cseal_seal(
  const void *_Nonnull schedule, const uint8_t *_Nonnull nonce, const void *_Nonnull associated, size_t associated_count,
  void *_Nonnull page, size_t count, uint8_t *_Nonnull tag);
// Opens `count` bytes in place. 1, or 0 with the bytes as they were: they are copied to `scratch`, sealed as they are, to be put back.
int cseal_open(
  const void *_Nonnull schedule, const uint8_t *_Nonnull nonce, const void *_Nonnull associated, size_t associated_count,
  void *_Nonnull page, size_t count, const uint8_t *_Nonnull tag, void *_Nonnull scratch);

// Slots of one cache line each, all zeros when free. Takes one, nearest to the thread's own, and waits if there is none.
size_t cseal_claim(void *_Nonnull slots, size_t count);
// Takes the slot, waiting for whoever has it.
void cseal_claim_this(void *_Nonnull slots, size_t index);
void cseal_release(void *_Nonnull slots, size_t index);

#endif
