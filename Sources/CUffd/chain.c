// Calling a handler where the kernel would have called it.
//
// Our handler runs on the alternate stack. One that was installed without SA_ONSTACK expects the stack that was interrupted: it may be larger,
// and it may be what the handler looks at. So the kernel's signal frame is moved there, and the handler entered as if the kernel had; its
// return goes through the frame's own way back, and the alternate stack is free from the jump on.
#include "cuffd_chain.h"

#include <signal.h>
#include <string.h>
#include <ucontext.h>

#if defined(__x86_64__)

enum {
  red_zone = 128,
  // What the kernel puts there: a return address, a ucontext (of 304 bytes, shorter than the library's), a siginfo.
  info_offset = 8 + 304,
  frame_size = info_offset + 128,
};

static int is_inside(const stack_t *stack, uintptr_t address) {
  uintptr_t start = (uintptr_t)stack->ss_sp;
  return !(stack->ss_flags & SS_DISABLE) && address > start && address - start <= stack->ss_size;
}

// With a shadow stack a return address is not only what lies on the stack.
static int has_shadow_stack(void) {
  uint64_t pointer = 0;
  __asm__ volatile("rdsspq %0" : "+r"(pointer));
  return pointer != 0;
}

// The bytes of the processor's extended state in a signal frame.
static size_t state_size(const char *state) {
  uint32_t magic, size;
  memcpy(&magic, state + 464, 4);
  memcpy(&size, state + 468, 4);
  return magic == 0x46505853 ? size : 512;
}

int cuffd_chain_enter(void *handler, int signal_number, const void *info, void *raw) {
  const ucontext_t *context = raw;
  uintptr_t before = (uintptr_t)context->uc_mcontext.gregs[REG_RSP];
  if (!is_inside(&context->uc_stack, (uintptr_t)__builtin_frame_address(0)) || is_inside(&context->uc_stack, before)) return 0;
  if (has_shadow_stack()) return 0;
  const char *state = (const char *)context->uc_mcontext.fpregs;
  size_t size = state ? state_size(state) : 0;
  uintptr_t copy = (before - red_zone - size) & ~(uintptr_t)63;
  uintptr_t frame = ((copy - frame_size) & ~(uintptr_t)15) - 8;
  memcpy((void *)copy, state, size);
  memcpy((void *)frame, (const char *)raw - 8, frame_size);
  memcpy((void *)(frame + info_offset), info, 128);
  ucontext_t *moved = (ucontext_t *)(frame + 8);
  if (state) moved->uc_mcontext.fpregs = (void *)copy;
  __asm__ volatile(
    "movq %[frame], %%rsp\n\t"
    "xorl %%eax, %%eax\n\t"
    "jmpq *%[handler]"
    :
    : [frame] "r"(frame), [handler] "r"(handler), "D"((long)signal_number), "S"(frame + info_offset), "d"(moved)
    : "rax", "memory");
  __builtin_unreachable();
}

#else

int cuffd_chain_enter(void *handler, int signal_number, const void *info, void *raw) {
  (void)handler;
  (void)signal_number;
  (void)info;
  (void)raw;
  return 0;
}

#endif
