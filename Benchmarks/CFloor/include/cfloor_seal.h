// What taking the rights to a page away and giving them back costs, and how somebody else reads a process's memory.
#ifndef CFLOOR_SEAL_H
#define CFLOOR_SEAL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// mprotect(2) of one page: nobody may touch it, or everybody may read and write it. 0 or -errno.
int cfloor_forbid_page(uint64_t page);
int cfloor_allow_page(uint64_t page);

// process_vm_readv(2) of `count` bytes at `address`. How many were read, or -errno.
int64_t cfloor_read_process(pid_t process, uint64_t address, void *_Nonnull buffer, size_t count);
// How often the needle is in the bytes. It comes masked, each byte exclusive-or `mask`, so that nobody who looks finds what he has in his
// own hands.
size_t cfloor_find_masked(
  const void *_Nonnull bytes, size_t count, const uint8_t *_Nonnull needle, size_t length, uint8_t mask);

#endif
