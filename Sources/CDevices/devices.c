// Drivers and devices: one that pins memory under a lock of its own, and one that is as slow as a test wants.
#include "CDevices.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

// ---- AF_XDP ----

int cdev_register_umem(uint64_t address, uint64_t length) {
  struct {
    uint64_t address, length;
    uint32_t chunk_size, headroom, flags, metadata;
  } umem = {address, length, 4096, 0, 0, 0};
  int fd = socket(44 /* AF_XDP */, SOCK_RAW | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  if (!setsockopt(fd, 283 /* SOL_XDP */, 4 /* XDP_UMEM_REG */, &umem, sizeof umem)) return fd;
  int result = -errno;
  close(fd);
  return result;
}

// ---- a file system whose only file answers reads when it is told to ----

enum { root = 1, file = 2, file_size = 1 << 20 };

struct cdev_slow_device {
  int fuse;
  pthread_t server;
  char directory[256];
  atomic_int is_held;   // reads wait
  atomic_int waiting;   // reads that wait
  uint8_t byte;         // what the file consists of
};

static void answer(int fuse, uint64_t unique, int error, const void *body, size_t count) {
  struct fuse_out_header header = {.len = (uint32_t)(sizeof header + count), .error = error, .unique = unique};
  char *reply = malloc(sizeof header + count);
  memcpy(reply, &header, sizeof header);
  if (count) memcpy(reply + sizeof header, body, count);
  ssize_t put = write(fuse, reply, sizeof header + count);
  (void)put;
  free(reply);
}

static struct fuse_attr attributes(uint64_t node) {
  struct fuse_attr found = {.ino = node, .nlink = 1, .blksize = 4096};
  found.mode = node == root ? 040755 : 0100644;
  found.size = node == root ? 0 : file_size;
  return found;
}

static void serve_read(struct cdev_slow_device *device, const struct fuse_in_header *in) {
  const struct fuse_read_in *read_in = (const void *)(in + 1);
  atomic_fetch_add(&device->waiting, 1);
  while (atomic_load(&device->is_held)) usleep(200);
  atomic_fetch_sub(&device->waiting, 1);
  char *bytes = malloc(read_in->size);
  memset(bytes, device->byte, read_in->size);
  answer(device->fuse, in->unique, 0, bytes, read_in->size);
  free(bytes);
}

static void serve(struct cdev_slow_device *device, const struct fuse_in_header *in) {
  switch (in->opcode) {
    case FUSE_INIT: {
      struct fuse_init_out out = {.major = 7, .minor = 31, .max_write = 65536, .max_readahead = 0};
      answer(device->fuse, in->unique, 0, &out, sizeof out);
      return;
    }
    case FUSE_LOOKUP: {
      struct fuse_entry_out out = {.nodeid = file, .attr = attributes(file), .attr_valid = 60, .entry_valid = 60};
      int is_file = !strcmp((const char *)(in + 1), "data");
      answer(device->fuse, in->unique, is_file ? 0 : -ENOENT, &out, is_file ? sizeof out : 0);
      return;
    }
    case FUSE_GETATTR: {
      struct fuse_attr_out out = {.attr_valid = 60, .attr = attributes(in->nodeid)};
      answer(device->fuse, in->unique, 0, &out, sizeof out);
      return;
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
      struct fuse_open_out out = {.fh = 1, .open_flags = FOPEN_DIRECT_IO};
      answer(device->fuse, in->unique, 0, &out, sizeof out);
      return;
    }
    case FUSE_READ: serve_read(device, in); return;
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_FLUSH: answer(device->fuse, in->unique, 0, 0, 0); return;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: return;
    default: answer(device->fuse, in->unique, -ENOSYS, 0, 0); return;
  }
}

static void *run(void *context) {
  struct cdev_slow_device *device = context;
  size_t size = 1 << 18;
  char *request = malloc(size);
  for (;;) {
    ssize_t got = read(device->fuse, request, size);
    if (got < 0 && (errno == EINTR || errno == ENOENT)) continue;
    if (got <= 0) break;
    serve(device, (const struct fuse_in_header *)request);
  }
  free(request);
  return 0;
}

int cdev_slow_device_start(const char *directory, uint8_t byte, struct cdev_slow_device **made) {
  struct cdev_slow_device *device = calloc(1, sizeof *device);
  snprintf(device->directory, sizeof device->directory, "%s", directory);
  device->byte = byte;
  device->fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  int result = device->fuse < 0 ? -errno : 0;
  if (!result) {
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device->fuse);
    if (mount("slow", directory, "fuse", MS_NOSUID | MS_NODEV, options)) result = -errno;
    if (!result && pthread_create(&device->server, 0, run, device)) {
      result = -EAGAIN;
      umount2(directory, MNT_DETACH);
    }
  }
  if (result) {
    if (device->fuse >= 0) close(device->fuse);
    free(device);
    return result;
  }
  *made = device;
  return 0;
}

int cdev_slow_device_open(struct cdev_slow_device *device) {
  char path[300];
  snprintf(path, sizeof path, "%s/data", device->directory);
  int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

void cdev_slow_device_hold(struct cdev_slow_device *device, int is_held) { atomic_store(&device->is_held, is_held); }
int cdev_slow_device_waiting(struct cdev_slow_device *device) { return atomic_load(&device->waiting); }

void cdev_slow_device_end(struct cdev_slow_device *device) {
  atomic_store(&device->is_held, 0);
  umount2(device->directory, MNT_DETACH);
  // The server has an error for its next read once the mount is gone; nobody has the file open any more.
  pthread_join(device->server, 0);
  close(device->fuse);
  free(device);
}

ssize_t cdev_read_at(int fd, uint64_t address, size_t length, uint64_t offset) {
  ssize_t got = pread(fd, (void *)address, length, (off_t)offset);
  return got < 0 ? -errno : got;
}
