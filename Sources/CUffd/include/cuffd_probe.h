// What a probe of the kernel needs beside the fault path: calls that may be forbidden, and files.
#ifndef CUFFD_PROBE_H
#define CUFFD_PROBE_H

#include <stdint.h>

// System calls that a seccomp filter may answer by killing the process.
enum cuffd_probe {
  cuffd_probe_userfaultfd = 1,
  cuffd_probe_user_mode_userfaultfd,
  cuffd_probe_memfd,
  cuffd_probe_io_uring,
  cuffd_probe_membarrier,
};

// Makes the call in a child process that ends at once; returns 0 or its -errno. `signal` is the signal that killed the
// child, 0 for none, or -1 if there could be no child. No SIGCHLD is sent, and no handler of fork() runs.
int cuffd_probe_in_child(int probe, int *_Nonnull signal);
// 0 if MEMBARRIER_CMD_PRIVATE_EXPEDITED is offered, or -errno.
int cuffd_probe_membarrier_expedited(void);

uint32_t cuffd_effective_user(void);
// The soft and hard limit on open descriptors, and on locked bytes; UINT64_MAX for none.
int cuffd_limit_descriptors(uint64_t *_Nonnull soft, uint64_t *_Nonnull hard);
int cuffd_limit_locked_memory(uint64_t *_Nonnull soft, uint64_t *_Nonnull hard);
// uname(2)'s release.
int cuffd_kernel_release(char *_Nonnull out, int capacity);

// $TMPDIR or /tmp.
const char *_Nonnull cuffd_temporary_directory(void);
// A file without a name in `directory`, open for reading and writing.
int cuffd_temporary_file(const char *_Nonnull directory);
// statfs(2)'s f_type.
int cuffd_file_system_type(int fd, uint64_t *_Nonnull out);
// Gives the range storage / takes it away; the size stays. EINTR is the caller's to retry.
int cuffd_allocate(int fd, int64_t offset, int64_t length);
int cuffd_punch_hole(int fd, int64_t offset, int64_t length);

// MFD_*
static const unsigned cuffd_memfd_close_on_exec = 0x1;
// MFD_HUGETLB | MFD_HUGE_2MB
static const unsigned cuffd_memfd_hugetlb = 0x4u | 21u << 26;

#endif
