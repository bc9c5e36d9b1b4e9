// What the kernel alone charges: plain C loops that do a topic's work without PinKit. No policy, no bookkeeping that the
// kernel does not force. Addresses are integers, counts are 4 KiB pages, times are ns a page; a failure ends the process with
// its reason, for a floor that was not reached measures nothing. The headers that this one includes return -errno instead, as
// they need what a machine may lack or forbid: children, files, memory for two.
#ifndef CFLOOR_H
#define CFLOOR_H

#include <stddef.h>
#include <stdint.h>

#include "cfloor_cow.h"
#include "cfloor_file.h"
#include "cfloor_leak.h"
#include "cfloor_notify.h"
#include "cfloor_pin.h"
#include "cfloor_scale.h"
#include "cfloor_seal.h"
#include "cfloor_snapshot.h"
#include "cfloor_stall.h"
#include "cfloor_vring.h"

// Private anonymous memory on a 2 MiB boundary. huge: 1 = MADV_HUGEPAGE, 0 = MADV_NOHUGEPAGE. populate: write every page once.
uint64_t cfloor_map(size_t pages, int huge, int populate);
// The same, but shared memory of a memfd that nothing else maps. Huge pages also need
// /sys/kernel/mm/transparent_hugepage/shmem_enabled at `advise` or better; write-protecting them splits them.
uint64_t cfloor_map_shared(size_t pages, int huge, int populate);
// How many of the pages are mapped by huge page table entries, or -errno. Needs Linux 6.7.
int64_t cfloor_huge_pages(uint64_t base, size_t pages);
// How many 4 KiB pages are free now.
size_t cfloor_free_pages(void);
void cfloor_unmap(uint64_t base, size_t pages);
// Takes and maps the memory of every page for writing, in bulk, whoever mapped the range.
void cfloor_populate(uint64_t base, size_t pages);

// The writer of both sides. One write to each page of `order`; ns a page.
double cfloor_write_pages(uint64_t base, const uint32_t *_Nonnull order, size_t count);
// The same by two threads, the first and the second half of `order`; wall ns a page, thread creation left out.
double cfloor_write_pages_by_two(uint64_t base, const uint32_t *_Nonnull order, size_t count);

// The reader of both sides. One load from each page of `order`; ns a page.
double cfloor_read_pages(uint64_t base, const uint32_t *_Nonnull order, size_t count);

// CLOCK_MONOTONIC in ns.
uint64_t cfloor_now(void);
// Rss of /proc/self/smaps_rollup plus VmPTE, in KiB, once free heap pages were given back.
size_t cfloor_resident_kib(void);

// Who resolves the first write to a page.
enum cfloor_mechanism {
  // A thread blocks in read(2) for one message, removes the protection and wakes the writer.
  cfloor_thread = 0,
  // UFFD_FEATURE_SIGBUS: the handler removes the protection in the writer's own thread.
  cfloor_in_place = 1,
  // UFFD_FEATURE_WP_ASYNC: the kernel. Armed by UFFDIO_WRITEPROTECT, the fastest way on huge pages.
  cfloor_async = 2,
  // The same, armed by PAGEMAP_SCAN without a vector, the fastest way on 4 KiB pages.
  cfloor_async_scan = 3,
  // The same, armed by UFFDIO_WRITEPROTECT where PAGEMAP_SCAN finds huge pages: holes stay holes.
  cfloor_async_huge = 5,
  // mprotect(2): a SIGSEGV handler makes the page writable.
  cfloor_mprotect = 4,
};

struct cfloor_watch;

// Protects the range. fault_pages: pages made writable per fault, a power of two, aligned. *ns is the time to open
// the descriptors, register and protect, ns a page; starting the thread is not in it. One watch in a process at a time.
struct cfloor_watch *_Nonnull cfloor_watch_start(
  uint64_t base, size_t pages, int mechanism, size_t fault_pages, double *_Nonnull ns);
void cfloor_watch_stop(struct cfloor_watch *_Nonnull watch);

// Collects the pages written since the last time and protects them again; ns per page of the range. *dirty: how many there were.
// Async: a loop of PAGEMAP_SCAN. Thread: one UFFDIO_WRITEPROTECT for each run of a plain bitmap.
double cfloor_collect(struct cfloor_watch *_Nonnull watch, size_t *_Nonnull dirty);

#endif
