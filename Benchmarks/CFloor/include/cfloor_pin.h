// What counting and reading into memory that stays where it is cost without PinKit. Functions that can fail return -errno.
#ifndef CFLOOR_PIN_H
#define CFLOOR_PIN_H

#include <stddef.h>
#include <stdint.h>

// So many times two uncontended atomic read-modify-writes of one word, one up, one down: the least that a counted pin can cost. ns
// for both.
double cfloor_count_up_down(size_t count);
// The same for each of `words` words in turn, up all, then down all. ns for both of a word.
double cfloor_count_words(size_t words, size_t count);

// A ring with the range registered as fixed buffer 0.
struct cfloor_fixed;
int cfloor_fixed_start(uint64_t base, uint64_t bytes, struct cfloor_fixed *_Nullable *_Nonnull out);
void cfloor_fixed_stop(struct cfloor_fixed *_Nonnull fixed);
// READ_FIXED of so many blocks of `block` bytes, `depth` of them in one submission, from the file's start on; the memory is filled from
// its start again and again. ns a block in *ns.
int cfloor_fixed_read(
  struct cfloor_fixed *_Nonnull fixed, int fd, size_t block, size_t depth, size_t count, double *_Nonnull ns);
// The same with pread(2) into the memory.
int cfloor_pread(uint64_t base, uint64_t bytes, int fd, size_t block, size_t count, double *_Nonnull ns);
// A memfd of so many bytes, all of them there; -errno.
int cfloor_full_file(uint64_t bytes);
void cfloor_close(int fd);

#endif
