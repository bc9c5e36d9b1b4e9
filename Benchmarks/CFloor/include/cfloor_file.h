// What file-backed memory costs without PinKit: a plain io_uring loop that writes pages back, a handler thread that fills missing pages
// with pread(2) and UFFDIO_COPY, and the kernel's own mapping of the file. Every function returns -errno where it fails.
#ifndef CFLOOR_FILE_H
#define CFLOOR_FILE_H

#include <stddef.h>
#include <stdint.h>

// Makes a file of random-looking bytes, all of them allocated and in the page cache; a descriptor for reading and writing. The file is
// replaced if it is there.
int cfloor_file_make(const char *_Nonnull path, size_t pages);
void cfloor_file_close(int fd);

// The floor of writeback: writes runs of pages of memory at `base` to the same places in the file and calls fdatasync(2); ns. runs: pairs
// of a first page and a count. depth: how many operations are in flight, at most; each writes one run. Making the ring is not in it.
int64_t cfloor_file_write(int fd, uint64_t base, const uint64_t *_Nonnull runs, size_t count, uint32_t depth);

// One pread(2) of 4 KiB into `buffer` for each page of `order`; ns a page, negative for an error.
double cfloor_file_read(int fd, uint64_t buffer, const uint32_t *_Nonnull order, size_t count);

struct cfloor_fill;

// The floor of faults: a memfd region, registered MISSING | WP, and one thread that takes messages in batches, reads `around` pages of the
// file about the fault, aligned to so many (a power of two), and copies them in, write-protected. core: where the thread runs, -1 =
// anywhere. The kind that hops cores: around = 1 and a core of its own, see cfloor_fill_read. NULL where it fails, with errno.
struct cfloor_fill *_Nullable cfloor_fill_start(int fd, size_t pages, size_t around, int core);
// Loads a word of each page of `order`, from a thread on `core`, -1 = wherever it is; ns a page.
double cfloor_fill_read(struct cfloor_fill *_Nonnull fill, const uint32_t *_Nonnull order, size_t count, int core);
// All pages are missing again.
void cfloor_fill_forget(struct cfloor_fill *_Nonnull fill);
uint64_t cfloor_fill_base(const struct cfloor_fill *_Nonnull fill);
void cfloor_fill_stop(struct cfloor_fill *_Nonnull fill);

// Maps the file (MAP_SHARED), loads a word of each page of `order`, and unmaps it; ns a page without the two, negative for an error.
double cfloor_file_mmap_read(int fd, size_t pages, const uint32_t *_Nonnull order, size_t count);

#endif
