// Copies of memory that other code may guard, truncate or unmap at any moment: the kernel makes them, and answers with an error where an
// access would end in a signal. Async-signal-safe, but for the first two.
#ifndef CUFFD_CHECKED_H
#define CUFFD_CHECKED_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// How copies are made.
enum {
  cuffd_checked_calls = 0,    // process_vm_writev(2) and process_vm_readv(2)
  cuffd_checked_file = 1,     // /proc/self/mem, where these are forbidden
  cuffd_checked_nothing = 2,  // not at all: neither is to be had, and a copy is an access like any other
};
// Decides how, once; what is used when the calls are forbidden later is opened now. Returns which.
int cuffd_checked_prepare(void);
// In a child after fork(): the open file is that of the parent's memory.
void cuffd_checked_forget(void);

// Copies out of such memory into memory of the caller's own, that nothing protects: the kernel may take hold of it, and write it without a
// fault. Returns how many bytes were copied before the first page that cannot be read; -errno if there are none.
ssize_t cuffd_checked_read(void *_Nonnull target, const void *_Nonnull source, size_t length);
// The same into such memory; a page that is protected against writing counts as one that cannot be written. -ENOSYS where the calls are forbidden.
ssize_t cuffd_checked_write(void *_Nonnull target, const void *_Nonnull source, size_t length);
// Both at once, 4 KiB at most, through a buffer on the stack: neither side is taken hold of. For memory that refuses that, as memfd_secret's.
ssize_t cuffd_checked_through(void *_Nonnull target, const void *_Nonnull source, size_t length);
// Looks at the first 8 bytes of `count` pages, at most 64: a bit is set where they are not zeros. Returns how many pages were looked at
// before the first that cannot be read; -errno if there are none.
int cuffd_checked_heads(const void *_Nonnull start, size_t page_size, int count, uint64_t *_Nonnull bits);

#endif
