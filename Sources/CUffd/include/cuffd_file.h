// Files that have names: made, locked, renamed and removed. Every function returns a result or -errno.
#ifndef CUFFD_FILE_H
#define CUFFD_FILE_H

#include <stdint.h>

struct cuffd_file_info {
  uint64_t device;
  uint64_t inode;
  int64_t size;
  int64_t allocated;  // in bytes; holes take none
  int is_regular;
};

// Makes a file that was not there, readable and writable by its owner only. Symbolic links are not followed.
int cuffd_file_create(const char *_Nonnull path);
// Opens a file for reading. Neither waits at a FIFO nor becomes anybody's terminal.
int cuffd_file_open(const char *_Nonnull path, int follow);
int cuffd_file_open_directory(const char *_Nonnull path);
int cuffd_file_info(int fd, struct cuffd_file_info *_Nonnull out);
// What the name itself stands for: a symbolic link is not followed.
int cuffd_path_info(const char *_Nonnull path, struct cuffd_file_info *_Nonnull out);
// flock(2), exclusively and without waiting: -EWOULDBLOCK if somebody else has it. Goes with the last descriptor.
int cuffd_file_lock(int fd);
int cuffd_file_sync(int fd);
// The next byte at or behind `offset` that is data, or that is in a hole: SEEK_DATA, SEEK_HOLE.
int64_t cuffd_file_seek(int fd, int64_t offset, int to_hole);
// Without `replaces`, fails with -EEXIST if there is a file, or with -EINVAL where the file system cannot tell in one step.
int cuffd_rename(const char *_Nonnull from, const char *_Nonnull to, int replaces);
int cuffd_unlink(const char *_Nonnull path);
// Whether reads and writes of the file bypass the page cache because it lies in memory (STATX_ATTR_DAX): 1, 0, or -errno. `inode` gets
// its number.
int cuffd_path_is_dax(const char *_Nonnull path, uint64_t *_Nonnull inode);
// The processes that /proc shows, at most `capacity` of them; returns how many, or -errno.
int cuffd_processes(int32_t *_Nonnull out, int capacity);

#endif
