#ifndef CUFFD_CHAIN_H
#define CUFFD_CHAIN_H

#include <stdint.h>

// Enters a signal handler that was installed without SA_ONSTACK on the stack that the signal interrupted, and does not return: the handler's
// return ends the signal. To be called on the alternate stack from a handler that the kernel itself entered with `raw`. Returns 0, and has done
// nothing, where the handler can as well be called: where the stacks are the same, on other processors than x86-64, and under shadow stacks.
int cuffd_chain_enter(void *_Nonnull handler, int signal_number, const void *_Nonnull info, void *_Nonnull raw);

#endif
