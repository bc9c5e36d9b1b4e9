#include "cuffd_store.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "cuffd_descriptor.h"
#include "cuffd_sys.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x40
#endif

// Headers of Linux 6.1 know neither of the last three.
static const unsigned statx_dioalign = 0x2000, statx_write_atomic = 0x10000;
enum { dio_offset_align_at = 0x9c, atomic_min_at = 0xa8, atomic_max_at = 0xac };

static int become_blocking(int fd) {
  // io_uring fails operations on what does not block instead of waiting for them.
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
    int error = -errno;
    close(fd);
    return error;
  }
  return fd;
}

int cuffd_store_open(const char *path, int writes, int direct, int create) {
  int flags = (writes ? O_RDWR : O_RDONLY) | (direct ? O_DIRECT : 0) | (create ? O_CREAT | O_EXCL | O_NOFOLLOW : 0);
  int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
  return fd < 0 ? -errno : cuffd_raise(become_blocking(fd));
}

int cuffd_store_reopen(int fd, int writes, int direct) {
  char path[40];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return cuffd_store_open(path, writes, direct, 0);
}

int cuffd_store_writes(int fd) {
  int flags = fcntl(fd, F_GETFL);
  return flags < 0 ? -errno : (flags & O_ACCMODE) != O_RDONLY;
}

static uint32_t word(const char *bytes, int at) {
  uint32_t value;
  memcpy(&value, bytes + at, sizeof value);
  return value;
}

int cuffd_store_info(int fd, struct cuffd_store_info *out) {
  struct stat found;
  if (fstat(fd, &found) < 0) return -errno;
  *out = (struct cuffd_store_info){
    .device = found.st_dev, .inode = found.st_ino, .size = found.st_size, .allocated = (int64_t)found.st_blocks * 512,
    .link_count = (int64_t)found.st_nlink};
  if (S_ISREG(found.st_mode)) out->kind = cuffd_store_regular;
  if (S_ISBLK(found.st_mode)) {
    uint64_t size;
    int sector, read_only = 0;
    if (ioctl(fd, BLKGETSIZE64, &size) < 0 || ioctl(fd, BLKSSZGET, &sector) < 0) return -errno;
    ioctl(fd, BLKROGET, &read_only);
    out->kind = cuffd_store_block;
    out->size = out->allocated = (int64_t)size;
    out->sector = (uint32_t)sector;
    out->is_read_only = read_only != 0;
  }
  return 0;
}

int cuffd_store_abilities(int fd, struct cuffd_store_info *out) {
  struct statfs system;
  out->is_tmpfs = fstatfs(fd, &system) == 0 && system.f_type == TMPFS_MAGIC;
  char raw[256] = {0};
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, statx_dioalign | statx_write_atomic, raw) < 0) return -errno;
  if (word(raw, 0) & statx_dioalign && word(raw, dio_offset_align_at)) out->sector = word(raw, dio_offset_align_at);
  if (word(raw, 0) & statx_write_atomic) {
    out->atomic_min = word(raw, atomic_min_at);
    out->atomic_max = word(raw, atomic_max_at);
  }
  return 0;
}

int cuffd_store_identity(const char *path, uint64_t *device, uint64_t *inode) {
  struct stat found;
  if (stat(path, &found) < 0) return -errno;
  *device = found.st_dev;
  *inode = found.st_ino;
  return 0;
}

ssize_t cuffd_store_read_now(int fd, void *buffer, size_t length, int64_t offset) {
  struct iovec vector = {buffer, length};
  ssize_t got = preadv2(fd, &vector, 1, offset, RWF_NOWAIT);
  return got < 0 ? -errno : got;
}

ssize_t cuffd_store_read(int fd, void *buffer, size_t length, int64_t offset) {
  ssize_t got = pread(fd, buffer, length, offset);
  return got < 0 ? -errno : got;
}

ssize_t cuffd_store_write(int fd, const uint64_t *vectors, int count, int64_t offset, int atomic) {
  ssize_t put = pwritev2(fd, (const struct iovec *)vectors, count, offset, atomic ? RWF_ATOMIC : 0);
  return put < 0 ? -errno : put;
}

int cuffd_store_reserve(int fd, int64_t offset, int64_t length) {
  return fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length) < 0 ? -errno : 0;
}

int cuffd_store_sync(int fd) {
  int error = cuffd_inject_here(cuffd_call_sync);
  if (error) return error;
  return fdatasync(fd) < 0 ? -errno : 0;
}

int cuffd_store_lock(int fd) { return flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0; }
void cuffd_store_unlock(int fd) { flock(fd, LOCK_UN); }
