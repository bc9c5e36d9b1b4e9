// Descriptors that live long, in a process whose other code closes numbers that are not its own.
#ifndef CUFFD_DESCRIPTOR_H
#define CUFFD_DESCRIPTOR_H

#include <stdint.h>

// Which file a number stands for. Every memfd, userfaultfd and io_uring has an inode of its own (Linux 5.16); all eventfds and epoll
// sets of the machine have one.
struct cuffd_identity {
  uint64_t device;
  uint64_t inode;
};

// Moves a descriptor as high as the limit on open files allows, with room above it for others, and returns the number that it has then:
// the old one where there is no room. What is negative stays as it is.
int cuffd_raise(int fd);
// A second descriptor of the same file, as high; -errno.
int cuffd_duplicate(int fd);
// 0 or -errno.
int cuffd_identify(int fd, struct cuffd_identity *_Nonnull out);
// Whether the number is open and stands for that file. One system call; async-signal-safe.
int cuffd_is(int fd, struct cuffd_identity identity);
// The same for a file of a file system that may have failed: true as well where the number is open and fstat(2) answers with an error.
int cuffd_may_be(int fd, struct cuffd_identity identity);
// Closes the number if it stands for that file: otherwise other code has closed it, and may have it now.
void cuffd_close_own(int fd, struct cuffd_identity identity);

// What has no inode of its own is marked: with an owner and a signal that is never sent, as nobody asks for signals. Duplicates share
// the mark. `mark`: 0 to 30. Returns the owner, or -errno.
int cuffd_mark(int fd, int mark);
// Whether the number stands for a file of that identity and mark. Three system calls; the second form is one, for who looks often.
int cuffd_has_mark(int fd, struct cuffd_identity identity, int mark, int owner);
int cuffd_seems_marked(int fd, int mark);
// For an opening of a file that nobody else has: a mark that says that a number is one of these, and a token that says which, as the one that
// got the number last. 0 where it cannot be marked. The look is one cheap system call.
uint32_t cuffd_mark_quietly(int fd);
int cuffd_seems_quietly_marked(int fd, uint32_t token);
// Whether two numbers stand for one open file: 1, 0, or -errno where kcmp(2) is not to be had.
int cuffd_same_file(int fd, int other);

#endif
