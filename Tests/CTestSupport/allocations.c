// Counts allocations that the fault path makes. The program's malloc(3) is this one; a sanitizer needs its own there.
#include <stdatomic.h>
#include <stddef.h>

#include "CTestSupport.h"

static _Atomic(int (*)(void)) is_inside;
static atomic_int count;

void ct_watch_allocations(int (*inside)(void)) { atomic_store(&is_inside, inside); }
int ct_watched_allocations(void) { return atomic_load(&count); }

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HAS_SANITIZER
#endif
#endif

#ifndef HAS_SANITIZER
extern void *__libc_malloc(size_t size);
void *malloc(size_t size) {
  int (*inside)(void) = atomic_load(&is_inside);
  if (inside && inside()) atomic_fetch_add(&count, 1);
  return __libc_malloc(size);
}
#endif
