// Files and block devices that hold the pages of regions. Every function returns a result or -errno.
#ifndef CUFFD_STORE_H
#define CUFFD_STORE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { cuffd_store_other = 0, cuffd_store_regular = 1, cuffd_store_block = 2 };

struct cuffd_store_info {
  uint64_t device;
  uint64_t inode;
  int64_t size;       // in bytes, of the file or the device
  int64_t allocated;  // in bytes; holes take none
  int64_t link_count;
  int kind;
  int is_tmpfs;
  int is_read_only;    // a device that refuses writes, whoever opened it
  uint32_t sector;     // what direct I/O must be aligned to; 0 if the kernel does not tell
  uint32_t atomic_min;  // what RWF_ATOMIC takes, in bytes; 0 if nothing
  uint32_t atomic_max;
};

// Waits neither at a FIFO nor for a lease; the descriptor blocks. create: makes the file, which must not be there.
int cuffd_store_open(const char *_Nonnull path, int writes, int direct, int create);
// The same file once more, with an open file description of its own.
int cuffd_store_reopen(int fd, int writes, int direct);
// Whether the descriptor may be written to.
int cuffd_store_writes(int fd);
// Which file it is, how large, and on a block device the sector.
int cuffd_store_info(int fd, struct cuffd_store_info *_Nonnull out);
// Fills in the rest: what its file system and device can do.
int cuffd_store_abilities(int fd, struct cuffd_store_info *_Nonnull out);
// Device and inode of what the path stands for, links followed.
int cuffd_store_identity(const char *_Nonnull path, uint64_t *_Nonnull device, uint64_t *_Nonnull inode);
// pread(2) of what needs no waiting: RWF_NOWAIT.
ssize_t cuffd_store_read_now(int fd, void *_Nonnull buffer, size_t length, int64_t offset);
ssize_t cuffd_store_read(int fd, void *_Nonnull buffer, size_t length, int64_t offset);
// `vectors` are pairs of address and length, as of struct iovec. atomic: RWF_ATOMIC.
ssize_t cuffd_store_write(int fd, const uint64_t *_Nonnull vectors, int count, int64_t offset, int atomic);
// Takes space for a part of the file, whose size and content stay.
int cuffd_store_reserve(int fd, int64_t offset, int64_t length);
int cuffd_store_sync(int fd);
int cuffd_store_lock(int fd);
void cuffd_store_unlock(int fd);

#endif
