#ifndef CUFFD_THREADS_H
#define CUFFD_THREADS_H

#include <stdint.h>

// How many threads of this process block a signal; up to `capacity` of their numbers go to `threads`. Threads of io_uring do not count.
// -errno where /proc cannot be read.
int cuffd_threads_blocking(int signal, int32_t *_Nonnull threads, int capacity);

#endif
