#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "floor.h"

struct cfloor_writer {
  pthread_t thread;
  uint64_t base;
  size_t pages;
  _Atomic uint64_t asked;    // grows with each measurement that is to begin
  _Atomic uint64_t begun;    // the one that is running
  _Atomic uint64_t longest;  // of the one before, ns
  _Atomic uint64_t ends;
};

static void *write_on(void *context) {
  struct cfloor_writer *writer = context;
  uint64_t step = 0, last = cfloor_now(), longest = 0, current = 0;
  while (!floor_load(&writer->ends)) {
    // Odd multiples of a number visit all pages of a power of two, and neighbours of none in a row.
    size_t page = (size_t)(step++ * 40503) & (writer->pages - 1);
    floor_store((_Atomic uint64_t *)floor_at(writer->base + page * FLOOR_PAGE), step);
    uint64_t now = cfloor_now(), asked = floor_load(&writer->asked);
    if (now - last > longest) longest = now - last;
    if (asked != current) {
      current = asked;
      floor_store(&writer->longest, longest);
      longest = 0;
      atomic_store_explicit(&writer->begun, current, memory_order_release);
      now = cfloor_now();
    }
    last = now;
  }
  return NULL;
}

int cfloor_writer_open(uint64_t base, size_t pages, struct cfloor_writer **out) {
  if (!pages || pages & (pages - 1)) return -EINVAL;
  struct cfloor_writer *writer = calloc(1, sizeof *writer);
  if (!writer) return -ENOMEM;
  writer->base = base;
  writer->pages = pages;
  int error = pthread_create(&writer->thread, NULL, write_on, writer);
  if (error) {
    free(writer);
    return -error;
  }
  *out = writer;
  return 0;
}

void cfloor_writer_begin(struct cfloor_writer *writer) {
  uint64_t number = floor_load(&writer->asked) + 1;
  floor_store(&writer->asked, number);
  while (atomic_load_explicit(&writer->begun, memory_order_acquire) != number) sched_yield();
}

int64_t cfloor_writer_longest(struct cfloor_writer *writer) {
  // The write that is stopped now belongs to what ends here.
  cfloor_writer_begin(writer);
  return (int64_t)floor_load(&writer->longest);
}

void cfloor_writer_close(struct cfloor_writer *writer) {
  floor_store(&writer->ends, 1);
  pthread_join(writer->thread, NULL);
  free(writer);
}
