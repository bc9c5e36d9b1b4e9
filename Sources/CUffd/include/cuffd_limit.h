#ifndef CUFFD_LIMIT_H
#define CUFFD_LIMIT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// A call that would make a file longer than RLIMIT_FSIZE fails with EFBIG, and the kernel sends its thread SIGXFSZ, which ends the process.
// Memory files count. The calls of this library that can meet the limit take that signal away again, whatever the program does with it; one that
// waited before, for a write of the program's own, stays. Async-signal-safe.

// Whether there is a limit at all: asking is cheaper than holding the signal back.
int cuffd_xfsz_is_limited(void);
// Between the two SIGXFSZ is held back, and taken away if it came. `state` is 136 bytes.
void cuffd_xfsz_hold(void *_Nonnull state);
void cuffd_xfsz_release(const void *_Nonnull state, int came);

// pwrite(2) for threads that have all signals blocked, and no time to ask for the limit first.
ssize_t cuffd_pwrite_quietly(int fd, const void *_Nonnull buffer, size_t length, int64_t offset);

#endif
