// A driver that pins memory under a lock of its own, and a device that is as slow as its user wants: what tests and demos drive real pins with.
#ifndef CDEVICES_H
#define CDEVICES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Registers memory with an AF_XDP socket (XDP_UMEM_REG), whose driver pins it for writing and for long, and cannot wait for a fault. The
// socket, which is closed to undo it, or -errno.
int cdev_register_umem(uint64_t address, uint64_t length);

// A file of 1 MiB on a file system of its own (FUSE), mounted at `directory`: a direct read of it pins the memory and then waits for as long as the
// test likes. 0 or -errno.
struct cdev_slow_device;
int cdev_slow_device_start(
  const char *_Nonnull directory, uint8_t byte, struct cdev_slow_device *_Nullable *_Nonnull made);
int cdev_slow_device_open(struct cdev_slow_device *_Nonnull device);
void cdev_slow_device_hold(struct cdev_slow_device *_Nonnull device, int is_held);
// How many reads have arrived and wait.
int cdev_slow_device_waiting(struct cdev_slow_device *_Nonnull device);
// No file of it may be open any more.
void cdev_slow_device_end(struct cdev_slow_device *_Nonnull device);
// pread(2) to an address: how many bytes, or -errno.
ssize_t cdev_read_at(int fd, uint64_t address, size_t length, uint64_t offset);

#endif
