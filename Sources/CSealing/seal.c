// BoringSSL as swift-crypto builds it. Its Swift interface keeps the expanded key in an object that is freed without being wiped, and
// allocates for every page; the interface below it works in memory of the caller's.
#include "CSealing.h"

#include <stdbool.h>
#include <string.h>

#if !__has_include(<CCryptoBoringSSL_aead.h>)
#error "swift-crypto no longer has BoringSSL's AEAD interface under this name: this file is the only one that uses it"
#endif
#include <CCryptoBoringSSL_aead.h>

// What the cipher left on the stack below and in vector registers, which the next signal would write to a stack.
static void forget(void);
// The same, and the stack as far down as reporting an error goes.
static void forget_deeply(void);

// When a function is called for the first time the dynamic linker saves the vector registers on the stack, deeper than anybody
// clears each time. Here that happens with a key and a page of zeros.
static void call_each_once(void) {
  static const uint8_t zeros[cseal_key_bytes];
  uint8_t page[256] = {0}, scratch[256], tag[cseal_tag_bytes];
  EVP_AEAD_CTX schedule;
  if (!EVP_AEAD_CTX_init(&schedule, EVP_aead_aes_256_gcm(), zeros, cseal_key_bytes, cseal_tag_bytes, NULL)) return;
  cseal_seal(&schedule, zeros, zeros, sizeof zeros, page, sizeof page, tag);
  cseal_open(&schedule, zeros, zeros, sizeof zeros, page, sizeof page, tag, scratch);
  tag[0] ^= 1;
  cseal_open(&schedule, zeros, zeros, sizeof zeros, page, sizeof page, tag, scratch);
}

void cseal_prepare_thread(void) {
  static _Thread_local bool is_prepared;
  if (is_prepared) return;
  is_prepared = true;
  call_each_once();
}

size_t cseal_schedule_bytes(void) { return sizeof(EVP_AEAD_CTX); }

int cseal_expand(void *schedule, const uint8_t *key) {
  call_each_once();
  int done = EVP_AEAD_CTX_init(schedule, EVP_aead_aes_256_gcm(), key, cseal_key_bytes, cseal_tag_bytes, NULL);
  forget_deeply();
  return done;
}

int cseal_seal(
  const void *schedule, const uint8_t *nonce, const void *associated, size_t associated_count, void *page, size_t count,
  uint8_t *tag) {
  size_t tag_count;
  int done = EVP_AEAD_CTX_seal_scatter(
    schedule, page, tag, &tag_count, cseal_tag_bytes, nonce, cseal_nonce_bytes, page, count, NULL, 0, associated,
    associated_count);
  forget();
  return done;
}

int cseal_open(
  const void *schedule, const uint8_t *nonce, const void *associated, size_t associated_count, void *page, size_t count,
  const uint8_t *tag, void *scratch) {
  memcpy(scratch, page, count);
  // Reads each sealed byte where nobody else writes: what was authenticated is what is opened. Clears the page if it fails.
  int done = EVP_AEAD_CTX_open_gather(
    schedule, page, nonce, cseal_nonce_bytes, scratch, count, tag, cseal_tag_bytes, associated, associated_count);
  if (done) {
    forget();
  } else {
    memcpy(page, scratch, count);
    forget_deeply();
  }
  return done;
}

__attribute__((noinline)) static void forget_stack(void) {
  uint8_t below[1024];
  memset(below, 0, sizeof below);
  __asm__ volatile("" : : "r"(below) : "memory");
}

__attribute__((noinline)) static void forget_deep_stack(void) {
  uint8_t below[16 << 10];
  memset(below, 0, sizeof below);
  __asm__ volatile("" : : "r"(below) : "memory");
}

static void forget_deeply(void) {
  forget_deep_stack();
  forget();
}

#if defined(__x86_64__)
__attribute__((noinline, target("avx512f"))) static void forget_wide(void) {
  __asm__ volatile(
    "vpxord %%zmm16,%%zmm16,%%zmm16\n vpxord %%zmm17,%%zmm17,%%zmm17\n vpxord %%zmm18,%%zmm18,%%zmm18\n"
    "vpxord %%zmm19,%%zmm19,%%zmm19\n vpxord %%zmm20,%%zmm20,%%zmm20\n vpxord %%zmm21,%%zmm21,%%zmm21\n"
    "vpxord %%zmm22,%%zmm22,%%zmm22\n vpxord %%zmm23,%%zmm23,%%zmm23\n vpxord %%zmm24,%%zmm24,%%zmm24\n"
    "vpxord %%zmm25,%%zmm25,%%zmm25\n vpxord %%zmm26,%%zmm26,%%zmm26\n vpxord %%zmm27,%%zmm27,%%zmm27\n"
    "vpxord %%zmm28,%%zmm28,%%zmm28\n vpxord %%zmm29,%%zmm29,%%zmm29\n vpxord %%zmm30,%%zmm30,%%zmm30\n"
    "vpxord %%zmm31,%%zmm31,%%zmm31\n"
    :
    :
    : "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28",
      "xmm29", "xmm30", "xmm31");
}

#define LOW_REGISTERS \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
    "xmm14", "xmm15"

__attribute__((noinline, target("avx"))) static void forget_narrow(void) {
  __asm__ volatile("vzeroall" : : : LOW_REGISTERS);
}

__attribute__((noinline)) static void forget_oldest(void) {
  __asm__ volatile(
    "pxor %%xmm0,%%xmm0\n pxor %%xmm1,%%xmm1\n pxor %%xmm2,%%xmm2\n pxor %%xmm3,%%xmm3\n pxor %%xmm4,%%xmm4\n"
    "pxor %%xmm5,%%xmm5\n pxor %%xmm6,%%xmm6\n pxor %%xmm7,%%xmm7\n pxor %%xmm8,%%xmm8\n pxor %%xmm9,%%xmm9\n"
    "pxor %%xmm10,%%xmm10\n pxor %%xmm11,%%xmm11\n pxor %%xmm12,%%xmm12\n pxor %%xmm13,%%xmm13\n"
    "pxor %%xmm14,%%xmm14\n pxor %%xmm15,%%xmm15\n"
    :
    :
    : LOW_REGISTERS);
}

static void forget(void) {
  forget_stack();
  if (__builtin_cpu_supports("avx512f")) forget_wide();
  if (__builtin_cpu_supports("avx")) forget_narrow();
  else forget_oldest();
}
#elif defined(__aarch64__)
// v8 to v15 keep their lower halves across calls, so the cipher has put the caller's back.
static void forget(void) {
  forget_stack();
  __asm__ volatile(
    "movi v0.16b,#0\n movi v1.16b,#0\n movi v2.16b,#0\n movi v3.16b,#0\n movi v4.16b,#0\n movi v5.16b,#0\n"
    "movi v6.16b,#0\n movi v7.16b,#0\n movi v16.16b,#0\n movi v17.16b,#0\n movi v18.16b,#0\n movi v19.16b,#0\n"
    "movi v20.16b,#0\n movi v21.16b,#0\n movi v22.16b,#0\n movi v23.16b,#0\n movi v24.16b,#0\n movi v25.16b,#0\n"
    "movi v26.16b,#0\n movi v27.16b,#0\n movi v28.16b,#0\n movi v29.16b,#0\n movi v30.16b,#0\n movi v31.16b,#0\n"
    :
    :
    : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25",
      "v26", "v27", "v28", "v29", "v30", "v31");
}
#else
static void forget(void) { forget_stack(); }
#endif
