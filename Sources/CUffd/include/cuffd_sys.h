// One funnel for the system calls of the fault path. Every function returns a result or -errno, never ambient errno.
#ifndef CUFFD_SYS_H
#define CUFFD_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "cuffd_uapi.h"

// Which call an injected error is meant for.
enum cuffd_call {
  cuffd_call_none = 0,
  cuffd_call_open = 1,
  cuffd_call_api,
  cuffd_call_register,
  cuffd_call_unregister,
  cuffd_call_writeprotect,    // setting protection
  cuffd_call_unprotect,       // removing it
  cuffd_call_copy,
  cuffd_call_zeropage,
  cuffd_call_continue,
  cuffd_call_move,
  cuffd_call_poison,
  cuffd_call_wake,
  cuffd_call_read,
  cuffd_call_pagemap_scan,
  cuffd_call_mmap,
  cuffd_call_munmap,
  cuffd_call_mprotect,
  cuffd_call_madvise,
  cuffd_call_memfd,
  cuffd_call_pwrite,
  cuffd_call_create,          // of a file with a name
  cuffd_call_rename,
  cuffd_call_unlink,
  cuffd_call_sync,            // fsync(2)
  cuffd_call_completion,      // of an operation of an io_uring, which the kernel has carried out
  cuffd_call_memfd_secret,
  cuffd_call_mlock,
};

// Makes the next `times` calls of `call`, after `skip` of them went through, fail with `error` without reaching the kernel.
// Only tests call it. `times` 0 disarms.
void cuffd_inject(int call, int error, int skip, int times);
// How many calls have failed by injection since the last cuffd_inject.
int cuffd_injected(void);
// What a call of the kind returns instead of being made, or 0.
int cuffd_inject_here(int call);

// how: 0 = /dev/userfaultfd, 1 = the system call, 2 = the system call with UFFD_USER_MODE_ONLY.
int cuffd_open(int how);
int cuffd_api(int fd, uint64_t features, uint64_t *_Nonnull features_out, uint64_t *_Nonnull ioctls_out);
int cuffd_register(int fd, uint64_t start, uint64_t length, uint64_t mode, uint64_t *_Nonnull ioctls_out);
int cuffd_unregister(int fd, uint64_t start, uint64_t length);
int cuffd_writeprotect(int fd, uint64_t start, uint64_t length, uint64_t mode);
int cuffd_copy(int fd, uint64_t dst, uint64_t src, uint64_t length, uint64_t mode, int64_t *_Nonnull done);
int cuffd_zeropage(int fd, uint64_t start, uint64_t length, uint64_t mode, int64_t *_Nonnull done);
int cuffd_continue(int fd, uint64_t start, uint64_t length, uint64_t mode, int64_t *_Nonnull done);
int cuffd_move(int fd, uint64_t dst, uint64_t src, uint64_t length, uint64_t mode, int64_t *_Nonnull done);
int cuffd_poison(int fd, uint64_t start, uint64_t length, uint64_t mode, int64_t *_Nonnull done);
int cuffd_wake(int fd, uint64_t start, uint64_t length);

// A message as the kernel wrote it, flattened: what `a`, `b`, `c` hold depends on `event`.
//   pagefault: a = flags, b = address, c = thread id     fork: a = child's descriptor
//   remap: a = from, b = to, c = length                  remove, unmap: a = start, b = end
struct cuffd_message {
  uint8_t event;
  uint64_t a;
  uint64_t b;
  uint64_t c;
};
// Reads up to `capacity` (at most 64) messages; returns how many.
int cuffd_read(int fd, struct cuffd_message *_Nonnull messages, int capacity);

// PAGEMAP_SCAN; returns the number of regions written to `vec`, or -errno.
long cuffd_pagemap_scan(int fd, struct cuffd_pm_scan *_Nonnull arg);

int cuffd_mmap(uint64_t hint, uint64_t length, int prot, int flags, int fd, int64_t offset, uint64_t *_Nonnull out);
int cuffd_munmap(uint64_t start, uint64_t length);
int cuffd_mprotect(uint64_t start, uint64_t length, int prot);
int cuffd_madvise(uint64_t start, uint64_t length, int advice);
// A byte for each page of the range, of which the lowest bit says what mincore(2) does. 0 or -errno.
int cuffd_mincore(uint64_t start, uint64_t length, unsigned char *_Nonnull pages);
int cuffd_memfd(const char *_Nonnull name, unsigned flags);
// Copies memory that other threads may write meanwhile: whoever calls it finds out by other means whether they did. The thread
// sanitizer is not told, as it knows nothing of page-table entries.
void cuffd_copy_bytes(void *_Nonnull target, const void *_Nonnull source, size_t length);
// Whether all of the bytes, a multiple of 64, are zeros; as above.
int cuffd_is_zero_beside_writers(const void *_Nonnull source, size_t length);
// Writes a byte and changes nothing, in one step: whatever others write to it stays.
void cuffd_touch(void *_Nonnull byte);
ssize_t cuffd_pwrite(int fd, const void *_Nonnull buffer, size_t length, int64_t offset);
ssize_t cuffd_pread(int fd, void *_Nonnull buffer, size_t length, int64_t offset);
int cuffd_open_file(const char *_Nonnull path, int flags);
ssize_t cuffd_read_file(int fd, void *_Nonnull buffer, size_t length);
int cuffd_resize(int fd, int64_t size);
// st_blocks, in units of 512 bytes; 0 if the number is not open.
int64_t cuffd_file_blocks(int fd);
// SEEK_DATA and SEEK_HOLE: a position, or -errno.
int64_t cuffd_seek_data(int fd, int64_t offset);
int64_t cuffd_seek_hole(int fd, int64_t offset);
// Moves a mapping over whatever is at `target`.
int cuffd_move_mapping(uint64_t start, uint64_t length, uint64_t target);
// The magic number of the file system that holds `path`, or -errno.
int64_t cuffd_filesystem(const char *_Nonnull path);
// The working directory's path, and its length; -errno, also where it cannot be reached from the root.
int cuffd_current_directory(char *_Nonnull path, uint64_t size);
void cuffd_close(int fd);
long cuffd_page_size(void);

int cuffd_futex_wait(const uint32_t *_Nonnull word, uint32_t expected);
// Waits for at most `timeout_ms`; without end if it is negative.
int cuffd_futex_wait_for(const uint32_t *_Nonnull word, uint32_t expected, int timeout_ms);
int cuffd_futex_wake(const uint32_t *_Nonnull word, int count);
uint64_t cuffd_now_ns(void);
void cuffd_pause(uint64_t ns);
void cuffd_relax(void);
int cuffd_tid(void);
// Of this process's affinity mask; 1 if it cannot be read.
int cuffd_processor_count(void);
// The calling thread's stack, [start, end); 0 or -errno.
int cuffd_stack(uint64_t *_Nonnull start, uint64_t *_Nonnull end);

// An epoll set; `data` comes back with each event. A one-shot descriptor is reported once, to one thread, until it is set again
// (`modify`), which reports it at once if it is readable then.
int cuffd_epoll_create(void);
int cuffd_epoll_set(int epoll, int fd, uint64_t data, int one_shot, int modify);
int cuffd_epoll_remove(int epoll, int fd);
// One event; 0 if there is none.
int cuffd_epoll_wait(int epoll, uint64_t *_Nonnull data, int timeout_ms);
int cuffd_eventfd(void);
int cuffd_eventfd_signal(int fd);

// Starts a thread that blocks every signal but those of faults; `on_exit` runs however it ends (return, pthread_exit, cancel).
int cuffd_thread_start(
  const char *_Nonnull name, void (*_Nonnull body)(void *_Nullable), void (*_Nonnull on_exit)(void *_Nullable),
  void *_Nullable context, uint64_t *_Nonnull out);
void cuffd_thread_join(uint64_t thread);
void cuffd_thread_exit(void);
// Blocks every signal but those of faults on this thread; returns the old mask in `saved` (128 bytes).
void cuffd_block_signals(void *_Nonnull saved);
void cuffd_restore_signals(const void *_Nonnull saved);
// Writes the text to standard error and aborts. Never returns; async-signal-safe.
void cuffd_die(const char *_Nonnull text);

#endif
