// What as many threads of plain C pay as a topic has, each on its own pages. Addresses are integers, counts are 4 KiB pages; a failure
// ends the process with its reason.
#ifndef CFLOOR_SCALE_H
#define CFLOOR_SCALE_H

#include <stddef.h>
#include <stdint.h>

// So many loads, or stores, of a word of one page after the other, again and again; `pages` is a power of two. Each page's word is in
// another line of its cache set, as every 4,096th byte would compete for one set of the cache.
void cfloor_walk_load(uint64_t base, size_t pages, size_t count);
void cfloor_walk_store(uint64_t base, size_t pages, size_t count);
// So many times two atomic read-modify-writes of one after the other of so many adjacent words, one up, one down.
void cfloor_walk_count(uint64_t base, size_t words, size_t count);
// So many copies of one page after the other to memory of the thread's own.
void cfloor_walk_copy(uint64_t base, size_t pages, size_t count);

struct cfloor_shards;

// Write-protects the range in `count` equal parts, each with a userfaultfd of its own. mechanism: of cfloor_mechanism, cfloor_thread
// (each part has a reader thread of its own, too), cfloor_in_place or cfloor_async_scan. Descriptors that differ keep the kernel from
// joining the parts in one mapping (VMA). One of them in a process at a time.
struct cfloor_shards *_Nonnull cfloor_shards_start(uint64_t base, size_t pages, size_t count, int mechanism);
void cfloor_shards_stop(struct cfloor_shards *_Nonnull shards);

#endif
