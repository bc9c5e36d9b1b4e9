// What a thread is in the middle of.
#ifndef CUFFD_THREAD_H
#define CUFFD_THREAD_H

#include <stdint.h>

struct cuffd_thread {
  // How deep the thread is inside the fault path, inside a signal handler that resolves a fault, inside callbacks of subscribers, and inside
  // callbacks of any kind that the lock order knows of.
  int path, fault, notified, callbacks;
};
extern __thread struct cuffd_thread cuffd_thread __attribute__((tls_model("initial-exec")));
// How often the process was forked as a child.
extern uint32_t cuffd_generation;

static inline int cuffd_in_fault_path(void) {
  return cuffd_thread.path > 0 || cuffd_thread.fault > 0 || cuffd_thread.notified > 0;
}
static inline int cuffd_thread_is_plain(void) {
  return !(cuffd_thread.path | cuffd_thread.fault | cuffd_thread.notified | cuffd_thread.callbacks);
}
// The same outside of signal handlers: a fault of the thread itself may be in the way of what it waits for.
static inline int cuffd_serves_faults(void) { return cuffd_thread.path > 0 || cuffd_thread.notified > 0; }
static inline void cuffd_enter_fault_path(void) { cuffd_thread.path++; }
static inline void cuffd_leave_fault_path(void) { cuffd_thread.path--; }
static inline int cuffd_notified_depth(void) { return cuffd_thread.notified; }
static inline int cuffd_callback_depth(void) { return cuffd_thread.callbacks; }
// How many times this process image has been the child of a fork since the library was loaded.
static inline uint32_t cuffd_fork_generation(void) { return __atomic_load_n(&cuffd_generation, __ATOMIC_RELAXED); }

#endif
