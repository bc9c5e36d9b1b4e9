// The attack on copy-on-write that needs no privilege: a child keeps a reference to a page of its parent, gives up the mapping,
// and hopes that the parent, now alone by the count of mappings, writes in place. Told in CVE-2020-29374.
#ifndef CFLOOR_LEAK_H
#define CFLOOR_LEAK_H

#include <stddef.h>

enum cfloor_leak_memory {
  // Private anonymous memory.
  cfloor_leak_private = 0,
  // The same on a huge page, all of which the child gives up.
  cfloor_leak_huge = 1,
  // The control, no attack: shared memory, in which the child must see the secret.
  cfloor_leak_shared = 2,
};

// Forks a child that vmsplice(2)s a page into a pipe and unmaps it; then writes a secret to the page; then lets the child read
// the pipe. Returns 1 = the child read the secret, 0 = it read what was there before, -errno = could not be tried
// (-EOPNOTSUPP: the memory did not become huge; -EBADMSG: the child read neither). memory: cfloor_leak_memory.
// seen: gets what the child read, "public" or "secret" or not, cut to `capacity` bytes, of which the last is 0.
int cfloor_leak(int memory, char *_Nonnull seen, size_t capacity);

#endif
