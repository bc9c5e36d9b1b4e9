// What fork() charges for copy-on-write: the pause of the call, and the first writes after it. Times are ns for the whole call,
// not a page; every function returns -errno where it fails, and nothing is left behind then.
#ifndef CFLOOR_COW_H
#define CFLOOR_COW_H

#include <stddef.h>
#include <stdint.h>

struct cfloor_cow;

// Private anonymous memory of so many 4 KiB pages, all of them written. huge: 1 = huge pages only, 0 = 4 KiB pages only.
// -EOPNOTSUPP if the kernel does not give huge pages (`pages` must be a multiple of 512 then).
int cfloor_cow_open(size_t pages, int huge, struct cfloor_cow *_Nullable *_Nonnull out);
void cfloor_cow_close(struct cfloor_cow *_Nonnull cow);

// Each of the following first makes the memory what it was after cfloor_cow_open: populated, writable, unshared, huge if it
// was. That costs about a second per 2 GiB and is in no figure.

// ns inside one fork(), whose child ends at once and is reaped. The rest of the process is forked too: keep it small.
int64_t cfloor_cow_pause(struct cfloor_cow *_Nonnull cow);
// ns of one write to each of `count` pages of `order` (page indices, each at most once) while a forked child that sleeps
// shares all of them: the kernel copies each. The child is killed and reaped afterwards.
int64_t cfloor_cow_copy(struct cfloor_cow *_Nonnull cow, const uint32_t *_Nonnull order, size_t count);
// The same once the child is gone: the pages are still write-protected, and the kernel reuses each in place.
int64_t cfloor_cow_reuse(struct cfloor_cow *_Nonnull cow, const uint32_t *_Nonnull order, size_t count);

#endif
