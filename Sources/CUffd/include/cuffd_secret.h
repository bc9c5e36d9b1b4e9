// Memory for secrets: made, locked, filled and wiped. Every function returns 0 or a result, or -errno.
#ifndef CUFFD_SECRET_H
#define CUFFD_SECRET_H

#include <stddef.h>
#include <stdint.h>

// A file whose pages only the mappings of its holders can reach (Linux 5.14); closed on exec.
int cuffd_memfd_secret(void);
int cuffd_lock_memory(uint64_t start, uint64_t length);
// Zeros that no compiler leaves out.
void cuffd_wipe(void *_Nonnull bytes, size_t count);
// Waits, once after boot, until the kernel has collected enough for random numbers.
int cuffd_random(void *_Nonnull bytes, size_t count);

#endif
