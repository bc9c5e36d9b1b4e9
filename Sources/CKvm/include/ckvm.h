// A virtual machine with one processor, over /dev/kvm: see Documentation/virt/kvm/api.rst. Every function returns a result or
// -errno, never ambient errno. A machine is used by one thread at a time.
#ifndef CKVM_H
#define CKVM_H

#include <stdint.h>

struct ckvm;

// Those that a program of ours uses.
struct ckvm_registers {
  uint64_t rax, rcx, rdx, rsi, rdi, r8, r9, rip;
};

// Why the guest stopped.
enum ckvm_exit {
  ckvm_exit_out,     // it wrote to a port
  ckvm_exit_memory,  // it touched an address where it has no memory
  ckvm_exit_other,
};

struct ckvm_stop {
  enum ckvm_exit exit;
  uint32_t reason;   // KVM's own number: KVM_EXIT_…
  uint64_t address;  // of ckvm_exit_memory
};

// Opens /dev/kvm and makes a machine that has a processor and no memory.
int ckvm_open(struct ckvm *_Nullable *_Nonnull out);
void ckvm_close(struct ckvm *_Nonnull machine);
// Makes a range of this process the guest's memory from guest-physical address 0.
int ckvm_set_memory(struct ckvm *_Nonnull machine, uint64_t start, uint64_t length);
// 64-bit user mode with flat segments, that page table, and the right to use ports.
int ckvm_set_mode(struct ckvm *_Nonnull machine, uint64_t page_table);
int ckvm_set_registers(struct ckvm *_Nonnull machine, const struct ckvm_registers *_Nonnull registers);
int ckvm_registers(struct ckvm *_Nonnull machine, struct ckvm_registers *_Nonnull out);
// Runs the guest until it stops. -EFAULT: the kernel may not touch the memory on the guest's behalf; the registers are those of
// before the instruction.
int ckvm_run(struct ckvm *_Nonnull machine, struct ckvm_stop *_Nonnull out);
// One of the processor's counters (KVM_GET_STATS_FD, Linux 5.14), such as "pf_fixed".
int64_t ckvm_statistic(struct ckvm *_Nonnull machine, const char *_Nonnull name);

#endif
