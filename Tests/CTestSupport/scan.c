// Looks for bytes in all of a process's memory.
#include "CTestSupport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { window_size = 1 << 20, guard = 4096, most_ranges = 65536 };

struct range {
  uint64_t start, end;
  char rights[5];
};

// Memory of the scan's own, between pages that keep the kernel from joining it with other mappings: it is left out of the scan.
static void *own_memory(size_t length) {
  char *all = mmap(NULL, length + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return NULL;
  mprotect(all + guard, length, PROT_READ | PROT_WRITE);
  return all + guard;
}

static void give_back(void *memory, size_t length) {
  if (memory) munmap((char *)memory - guard, length + 2 * guard);
}

static int read_ranges(struct range *ranges) {
  int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC), count = 0;
  if (fd < 0) return -errno;
  char line[512];
  size_t used = 0;
  for (char byte; read(fd, &byte, 1) == 1;) {
    if (byte != '\n') {
      if (used < sizeof line - 1) line[used++] = byte;
      continue;
    }
    line[used] = 0;
    used = 0;
    struct range *range = &ranges[count];
    unsigned long start, end;
    // [vvar] cannot be read, and [vsyscall] is outside of what pread(2) can reach.
    if (strstr(line, "[v") || sscanf(line, "%lx-%lx %4s", &start, &end, range->rights) != 3) continue;
    range->start = start;
    range->end = end;
    if (++count == most_ranges) break;
  }
  close(fd);
  return count;
}

// Compares with a mask, so that the needle as it is stands in no memory and in no register.
static int matches(const uint8_t *at, const uint8_t *masked, size_t count, uint8_t mask) {
  for (size_t i = 0; i < count; i++)
    if ((at[i] ^ mask) != masked[i]) return 0;
  return 1;
}

int ct_scan_memory(
  const uint8_t *masked, int count, uint8_t mask, uint64_t *found, int capacity, uint64_t *bytes_scanned, uint64_t *bytes_refused) {
  int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  if (memory < 0) return -errno;
  const size_t ranges_size = most_ranges * sizeof(struct range);
  uint8_t *window = own_memory(window_size);
  struct range *ranges = own_memory(ranges_size);
  int range_count = ranges && window ? read_ranges(ranges) : -ENOMEM, hits = range_count < 0 ? range_count : 0;
  *bytes_scanned = *bytes_refused = 0;
  for (int i = 0; i < range_count; i++) {
    uint64_t start = ranges[i].start, end = ranges[i].end;
    if (start == (uint64_t)(uintptr_t)window || start == (uint64_t)(uintptr_t)ranges) continue;
    while (start < end) {
      size_t wanted = end - start < window_size ? end - start : window_size;
      ssize_t got = pread(memory, window, wanted, (off_t)start);
      if (got <= 0) {
        // One page that cannot be read (secret memory, behind the end of a file) does not hide those behind it.
        *bytes_refused += 4096;
        start += 4096;
        continue;
      }
      *bytes_scanned += (uint64_t)got;
      const uint8_t *at = window, *last = window + got - count;
      while (at <= last && (at = memchr(at, masked[0] ^ mask, (size_t)(last - at) + 1))) {
        if (matches(at, masked, (size_t)count, mask)) {
          if (hits < capacity) found[hits] = start + (uint64_t)(at - window);
          hits++;
        }
        at++;
      }
      // The next window starts where a needle could that this one cuts.
      start += start + (uint64_t)got >= end || got < count ? (uint64_t)got : (uint64_t)(got - count + 1);
    }
  }
  if (window) explicit_bzero(window, window_size);
  give_back(window, window_size);
  give_back(ranges, ranges_size);
  close(memory);
  return hits;
}

// Puts `masked` ^ mask where it belongs: the bytes pass through nothing but a register.
void ct_unmask(void *target, const uint8_t *masked, int count, uint8_t mask) {
  for (int i = 0; i < count; i++) ((volatile uint8_t *)target)[i] = masked[i] ^ mask;
}

#if defined(__x86_64__)
__attribute__((noinline)) static void store_narrow(void *registers) {
  __asm__ volatile(
    "movdqu %%xmm0, 0(%0)\n"
    "movdqu %%xmm1, 16(%0)\n"
    "movdqu %%xmm2, 32(%0)\n"
    "movdqu %%xmm3, 48(%0)\n"
    "movdqu %%xmm4, 64(%0)\n"
    "movdqu %%xmm5, 80(%0)\n"
    "movdqu %%xmm6, 96(%0)\n"
    "movdqu %%xmm7, 112(%0)\n"
    "movdqu %%xmm8, 128(%0)\n"
    "movdqu %%xmm9, 144(%0)\n"
    "movdqu %%xmm10, 160(%0)\n"
    "movdqu %%xmm11, 176(%0)\n"
    "movdqu %%xmm12, 192(%0)\n"
    "movdqu %%xmm13, 208(%0)\n"
    "movdqu %%xmm14, 224(%0)\n"
    "movdqu %%xmm15, 240(%0)\n"
    : : "r"(registers) : "memory");
}

__attribute__((noinline, target("avx512f"))) static void store_wide(void *registers) {
  __asm__ volatile(
    "vmovdqu64 %%zmm0, 0(%0)\n"
    "vmovdqu64 %%zmm1, 64(%0)\n"
    "vmovdqu64 %%zmm2, 128(%0)\n"
    "vmovdqu64 %%zmm3, 192(%0)\n"
    "vmovdqu64 %%zmm4, 256(%0)\n"
    "vmovdqu64 %%zmm5, 320(%0)\n"
    "vmovdqu64 %%zmm6, 384(%0)\n"
    "vmovdqu64 %%zmm7, 448(%0)\n"
    "vmovdqu64 %%zmm8, 512(%0)\n"
    "vmovdqu64 %%zmm9, 576(%0)\n"
    "vmovdqu64 %%zmm10, 640(%0)\n"
    "vmovdqu64 %%zmm11, 704(%0)\n"
    "vmovdqu64 %%zmm12, 768(%0)\n"
    "vmovdqu64 %%zmm13, 832(%0)\n"
    "vmovdqu64 %%zmm14, 896(%0)\n"
    "vmovdqu64 %%zmm15, 960(%0)\n"
    "vmovdqu64 %%zmm16, 1024(%0)\n"
    "vmovdqu64 %%zmm17, 1088(%0)\n"
    "vmovdqu64 %%zmm18, 1152(%0)\n"
    "vmovdqu64 %%zmm19, 1216(%0)\n"
    "vmovdqu64 %%zmm20, 1280(%0)\n"
    "vmovdqu64 %%zmm21, 1344(%0)\n"
    "vmovdqu64 %%zmm22, 1408(%0)\n"
    "vmovdqu64 %%zmm23, 1472(%0)\n"
    "vmovdqu64 %%zmm24, 1536(%0)\n"
    "vmovdqu64 %%zmm25, 1600(%0)\n"
    "vmovdqu64 %%zmm26, 1664(%0)\n"
    "vmovdqu64 %%zmm27, 1728(%0)\n"
    "vmovdqu64 %%zmm28, 1792(%0)\n"
    "vmovdqu64 %%zmm29, 1856(%0)\n"
    "vmovdqu64 %%zmm30, 1920(%0)\n"
    "vmovdqu64 %%zmm31, 1984(%0)\n"
    : : "r"(registers) : "memory");
}

int ct_vector_registers_after(void (*body)(void *), void *context, void *registers) {
  int wide = __builtin_cpu_supports("avx512f") != 0;
  memset(registers, 0, 2048);
  body(context);
  if (wide) store_wide(registers);
  else store_narrow(registers);
  return wide ? 2048 : 256;
}
#else
int ct_vector_registers_after(void (*body)(void *), void *context, void *registers) {
  body(context);
  return 0;
}
#endif
