// What happens to the files of a store: limits, and file systems that stop.
#include "CTestSupport.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

int ct_limit_file_size(uint64_t bytes) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit)) return -errno;
  limit.rlim_cur = bytes && bytes < limit.rlim_max ? bytes : limit.rlim_max;
  return setrlimit(RLIMIT_FSIZE, &limit) ? -errno : 0;
}

uint64_t ct_map_file(const char *path, uint64_t length) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  void *memory = fd < 0 ? MAP_FAILED : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd >= 0) close(fd);
  return memory == MAP_FAILED ? 0 : (uint64_t)memory;
}

int ct_shut_down(const char *directory) {
  int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -errno;
  uint32_t flags = 2;  // without flushing the log
  int result = ioctl(fd, _IOR('X', 125, uint32_t), &flags) ? -errno : 0;
  close(fd);
  return result;
}
