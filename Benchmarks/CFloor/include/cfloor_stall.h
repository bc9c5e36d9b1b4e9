// For how long a thread that writes is stopped by what another does.
#ifndef CFLOOR_STALL_H
#define CFLOOR_STALL_H

#include <stddef.h>
#include <stdint.h>

#include "cfloor_cow.h"

struct cfloor_writer;

// A thread that writes a word of one page after the other, never of two neighbours in a row, as fast as it can, until
// cfloor_writer_close. `pages` must be a power of two, all of them there. -errno where there can be no thread.
int cfloor_writer_open(uint64_t base, size_t pages, struct cfloor_writer *_Nullable *_Nonnull out);
void cfloor_writer_close(struct cfloor_writer *_Nonnull writer);

// From here on its longest time between two writes is looked for; when this returns, it is writing.
void cfloor_writer_begin(struct cfloor_writer *_Nonnull writer);
// The longest time, in ns, until now; when this returns, it is writing again.
int64_t cfloor_writer_longest(struct cfloor_writer *_Nonnull writer);

// The longest time between two writes of such a thread beside one fork(), whose child ends at once; else as cfloor_cow_pause.
// The pages of `cow` must be a power of two.
int64_t cfloor_cow_stall(struct cfloor_cow *_Nonnull cow);

#endif
