// Faults that the kernel delivers as signals (SIGBUS from UFFD_FEATURE_SIGBUS, SIGSEGV from mprotect), up to the decision.
#ifndef CUFFD_FAULT_H
#define CUFFD_FAULT_H

#include <stdint.h>

#include "cuffd_thread.h"

// Decides and acts on one fault; runs in a signal handler with every other signal blocked. Returns 0 if the fault is
// not the library's: the program's own handler gets it then. `cuffd_fault_bus_error`: so it does, but as SIGBUS, whatever the kernel sent.
enum { cuffd_fault_bus_error = 2 };
typedef int (*cuffd_resolver)(void *_Nonnull context, uint64_t address, int is_write);

// In a child after fork(): make the range writable again (its protection was inherited, its handler was not).
enum { cuffd_range_unprotect_in_child = 1 };

// Installs handlers for SIGSEGV and SIGBUS once; keeps what was there to chain to. Returns 0 or -errno.
int cuffd_fault_install(void);
// Whether ours is the handler that the kernel would call now.
int cuffd_fault_installed(void);
// Adds [start, end). Not for signal handlers. Returns a token above 0, or -errno.
int64_t cuffd_fault_add(
  uint64_t start, uint64_t end, cuffd_resolver _Nonnull resolve, void *_Nonnull context, int flags);
// Removes a range. When it returns, no handler is running with its context and none will.
void cuffd_fault_remove(int64_t token);

// Descriptors to close in a child after fork(), so that it neither keeps the parent's userfaultfd alive nor sees the parent's memory.
int cuffd_fork_watch(void);
// Returns 0 or -errno.
int cuffd_fork_add_descriptor(int fd);
void cuffd_fork_remove_descriptor(int fd);
// Between the two, fork() waits: a descriptor that is being opened is not in that list yet.
void cuffd_fork_hold(void);
void cuffd_fork_allow(void);
// Per thread: the callbacks of subscribers that are running, innermost last, and the invalidations they belong to, each of which
// has a number of its own. Entering returns 0 where eight are nested.
uint64_t cuffd_operation_next(void);
int cuffd_notified_enter(uint64_t operation, const void *_Nonnull subscriber);
void cuffd_notified_leave(void);
uint64_t cuffd_notified_operation(void);
const void *_Nonnull cuffd_notified_subscriber(int depth);
// On whose behalf this thread changes mappings; 0: nobody's in particular.
uint64_t cuffd_owner(void);
uint64_t cuffd_owner_replace(uint64_t next);
// How often in a row this thread has reported `address` without anything to resolve; 0 resets. The first report of a generation does
// not count: pages have been protected since the last one.
uint32_t cuffd_repeated_fault(uint64_t address, uint64_t generation);

#endif
