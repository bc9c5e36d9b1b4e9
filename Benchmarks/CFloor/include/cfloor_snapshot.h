// What a snapshot costs without PinKit: a forked child that writes its copy, and a plain io_uring loop that writes a file.
// Every function returns -errno where it fails.
#ifndef CFLOOR_SNAPSHOT_H
#define CFLOOR_SNAPSHOT_H

#include <stddef.h>
#include <stdint.h>

// Writes memory to a file by io_uring and calls fsync(2); returns the ns from the first submission until fsync has returned.
// base: on a 4 KiB boundary. pages: how many 4 KiB pages. path: created, or emptied first (in no figure), and left there.
// write_bytes: how much one operation writes. depth: how many operations are in flight, at most. direct: 1 = O_DIRECT, for
// which write_bytes is a multiple of 4096; -EINVAL where the file system has none.
int64_t cfloor_stream(
  uint64_t base, size_t pages, const char *_Nonnull path, uint32_t write_bytes, uint32_t depth, int direct);

// Forks a child that writes the pages as they are now to `fd`, at its offset, with write(2), 1 MiB at a time, and ends. Returns
// the ns inside fork(): what the program is stopped for. *child: its process id, for cfloor_fork_wait. The child closes all other
// descriptors, and does not call fsync: `fd` is the caller's. base: private memory on a 4 KiB boundary; what is shared, such as a
// memfd, the child would see change.
int64_t cfloor_fork_snapshot(uint64_t base, size_t pages, int fd, int32_t *_Nonnull child);
// Blocks until that child has ended, and reaps it. 0 = all was written; -errno of the write that failed, or of waiting; above 0
// = the signal that killed it.
int cfloor_fork_wait(int32_t child);

// What a process occupies, in bytes. /proc/<pid>/smaps_rollup and VmPTE of /proc/<pid>/status.
struct cfloor_footprint {
  uint64_t resident;
  // Pages that several processes share count here by their share.
  uint64_t proportional;
  // Pages of this process alone: what its end would free.
  uint64_t unshared;
  uint64_t page_tables;
};

// child: a process id, 0 for this process. Returns 0, or -ESRCH once the process has ended, reaped or not.
//
// The extra memory of a snapshot by fork() is the child's `unshared` + `page_tables`: a page becomes the child's alone when the
// parent writes its own copy. It grows as long as the child lives: ask now and then, keep the largest. Free memory as the
// system counts it does not tell: the page cache of what the child writes takes from it too. Of huge pages, it is not even given
// back at the child's end: what the parent has not copied keeps each whole until memory is short.
int cfloor_footprint_of(int32_t child, struct cfloor_footprint *_Nonnull out);

#endif
