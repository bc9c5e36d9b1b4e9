// Counts allocations that the fault path makes. The program's malloc(3) and its kin are these; a sanitizer needs its own there.
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "CTestSupport.h"

static _Atomic(int (*)(void)) is_inside;
static atomic_int allocations, errors;

// What the runtime calls for each error that is thrown, whoever catches it. A host may have it take a backtrace, which allocates, as the
// testing library does.
extern _Atomic(void *) _swift_willThrow, _swift_willThrowTypedImpl;

static void note(atomic_int *of) {
  int (*inside)(void) = atomic_load(&is_inside);
  if (inside && inside()) atomic_fetch_add(of, 1);
}
static void note_error(void) { note(&errors); }

void ct_watch_allocations(int (*inside)(void)) {
  atomic_store(&_swift_willThrow, (void *)note_error);
  atomic_store(&_swift_willThrowTypedImpl, (void *)note_error);
  atomic_store(&is_inside, inside);
}
int ct_watched_allocations(void) { return atomic_load(&allocations); }
int ct_watched_errors(void) { return atomic_load(&errors); }

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HAS_SANITIZER
#endif
#endif

#ifndef HAS_SANITIZER
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
  note(&allocations);
  return __libc_malloc(size);
}
void *calloc(size_t items, size_t size) {
  note(&allocations);
  return __libc_calloc(items, size);
}
void *realloc(void *old, size_t size) {
  note(&allocations);
  return __libc_realloc(old, size);
}
void *memalign(size_t alignment, size_t size) {
  note(&allocations);
  return __libc_memalign(alignment, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
  note(&allocations);
  return __libc_memalign(alignment, size);
}
int posix_memalign(void **out, size_t alignment, size_t size) {
  note(&allocations);
  if (alignment % sizeof(void *) || alignment == 0 || alignment & (alignment - 1)) return EINVAL;
  int before = errno;
  void *memory = __libc_memalign(alignment, size);
  errno = before;
  if (!memory) return ENOMEM;
  *out = memory;
  return 0;
}
#endif

int ct_allocate(int kind) {
  // Nothing that the compiler knows of becomes of it.
  static void *volatile kept;
  void *memory = NULL;
  switch (kind) {
    case 0: memory = malloc(100); break;
    case 1: memory = calloc(10, 10); break;
    case 2: memory = realloc(NULL, 100); break;
    case 3: memory = memalign(64, 128); break;
    case 4: memory = aligned_alloc(64, 128); break;
    case 5: if (posix_memalign(&memory, 4096, 100)) memory = NULL; break;
    default: return 0;
  }
  kept = memory;
  free(kept);
  return 1;
}
