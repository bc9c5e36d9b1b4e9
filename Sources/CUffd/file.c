#include "cuffd_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuffd_descriptor.h"
#include "cuffd_sys.h"

int cuffd_file_create(const char *path) {
  int error = cuffd_inject_here(cuffd_call_create);
  if (error) return error;
  int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  return fd < 0 ? -errno : cuffd_raise(fd);
}

int cuffd_file_open(const char *path, int follow) {
  int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
  return fd < 0 ? -errno : cuffd_raise(fd);
}

int cuffd_file_open_directory(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

static void fill(const struct stat *found, struct cuffd_file_info *out) {
  *out = (struct cuffd_file_info){
    found->st_dev, found->st_ino, found->st_size, (int64_t)found->st_blocks * 512, S_ISREG(found->st_mode)};
}

int cuffd_file_info(int fd, struct cuffd_file_info *out) {
  struct stat found;
  if (fstat(fd, &found) < 0) return -errno;
  fill(&found, out);
  return 0;
}

int cuffd_path_info(const char *path, struct cuffd_file_info *out) {
  struct stat found;
  if (lstat(path, &found) < 0) return -errno;
  fill(&found, out);
  return 0;
}

int cuffd_file_lock(int fd) { return flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0; }

int cuffd_file_sync(int fd) {
  int error = cuffd_inject_here(cuffd_call_sync);
  if (error) return error;
  return fsync(fd) < 0 ? -errno : 0;
}

int64_t cuffd_file_seek(int fd, int64_t offset, int to_hole) {
  off_t found = lseek(fd, offset, to_hole ? SEEK_HOLE : SEEK_DATA);
  return found < 0 ? -errno : found;
}

int cuffd_rename(const char *from, const char *to, int replaces) {
  int error = cuffd_inject_here(cuffd_call_rename);
  if (error) return error;
  return renameat2(AT_FDCWD, from, AT_FDCWD, to, replaces ? 0 : RENAME_NOREPLACE) < 0 ? -errno : 0;
}

int cuffd_unlink(const char *path) {
  int error = cuffd_inject_here(cuffd_call_unlink);
  if (error) return error;
  return unlink(path) < 0 ? -errno : 0;
}

#ifndef STATX_ATTR_DAX
#define STATX_ATTR_DAX 0x00200000
#endif

int cuffd_path_is_dax(const char *path, uint64_t *inode) {
  struct statx found;
  if (statx(AT_FDCWD, path, AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, STATX_INO, &found) < 0) return -errno;
  *inode = found.stx_ino;
  return (found.stx_attributes & STATX_ATTR_DAX) != 0;
}

int cuffd_processes(int32_t *out, int capacity) {
  DIR *directory = opendir("/proc");
  if (!directory) return -errno;
  int count = 0;
  for (struct dirent *entry; count < capacity && (entry = readdir(directory));) {
    int pid = atoi(entry->d_name);
    if (pid > 0) out[count++] = pid;
  }
  closedir(directory);
  return count;
}
