// What reading memory costs where nobody keeps a window or a mirror of it: plain loads. Times are ns a load.
#ifndef CFLOOR_NOTIFY_H
#define CFLOOR_NOTIFY_H

#include <stddef.h>
#include <stdint.h>

// So many loads of the first word at `base`, none of them left out.
double cfloor_load(uint64_t base, size_t count);

// So many loads, each of the first word of a page of `table`, which holds the address of each of its `pages` pages, or 0, in which
// case the page is left out: one table of translations and nothing that would allow any of them to change. `pages` is a power of two.
double cfloor_translated_load(const uint64_t *_Nonnull table, size_t pages, size_t count);

#endif
