// Preloaded by `make sanitize`: tells the thread sanitizer what a contended Synchronization.Mutex does.
//
// The uncontended paths of Mutex are inlined into our code and seen by the sanitizer. The contended ones are functions of
// libswiftSynchronization, which is not instrumented: the lock changes hands inside futex(2), and the sanitizer reports a race
// between two threads that the mutex keeps apart. These functions stand before the real ones and say what they do.
#include <dlfcn.h>
#include <stdint.h>

#define METHOD __attribute__((swiftcall))
#define SELF __attribute__((swift_context)) void *self

// The sanitizer's own, where the process has one.
extern void __tsan_acquire(void *) __attribute__((weak));
extern void __tsan_release(void *) __attribute__((weak));

// Synchronization._MutexHandle._lockSlow(_: UInt32), _tryLockSlow() -> Bool, _unlockSlow()
#define LOCK "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define TRY_LOCK "$s15Synchronization12_MutexHandleV12_tryLockSlowSbyF"
#define UNLOCK "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"

METHOD void lock_slow(uint32_t thread, SELF) __asm__(LOCK);
METHOD _Bool try_lock_slow(SELF) __asm__(TRY_LOCK);
METHOD void unlock_slow(SELF) __asm__(UNLOCK);

METHOD void lock_slow(uint32_t thread, SELF) {
  ((METHOD void (*)(uint32_t, SELF))dlsym(RTLD_NEXT, LOCK))(thread, self);
  if (__tsan_acquire) __tsan_acquire(self);
}

METHOD _Bool try_lock_slow(SELF) {
  _Bool locked = ((METHOD _Bool (*)(SELF))dlsym(RTLD_NEXT, TRY_LOCK))(self);
  if (locked && __tsan_acquire) __tsan_acquire(self);
  return locked;
}

METHOD void unlock_slow(SELF) {
  if (__tsan_release) __tsan_release(self);
  ((METHOD void (*)(SELF))dlsym(RTLD_NEXT, UNLOCK))(self);
}
