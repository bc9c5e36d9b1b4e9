#include "ckvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct ckvm {
  int device, machine, processor;
  size_t run_size;
  struct kvm_run *run;
};

static int call(int fd, unsigned long request, void *argument) {
  int result = ioctl(fd, request, argument);
  return result < 0 ? -errno : result;
}

void ckvm_close(struct ckvm *machine) {
  if (machine->run) munmap(machine->run, machine->run_size);
  if (machine->processor >= 0) close(machine->processor);
  if (machine->machine >= 0) close(machine->machine);
  if (machine->device >= 0) close(machine->device);
  free(machine);
}

static int set_up(struct ckvm *machine) {
  machine->device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (machine->device < 0) return -errno;
  int version = call(machine->device, KVM_GET_API_VERSION, NULL);
  if (version != KVM_API_VERSION) return version < 0 ? version : -EOPNOTSUPP;
  // A signal interrupts it, with nothing done.
  do machine->machine = call(machine->device, KVM_CREATE_VM, NULL);
  while (machine->machine == -EINTR);
  if (machine->machine < 0) return machine->machine;
  if ((machine->processor = call(machine->machine, KVM_CREATE_VCPU, NULL)) < 0) return machine->processor;
  int size = call(machine->device, KVM_GET_VCPU_MMAP_SIZE, NULL);
  if (size < 0) return size;
  void *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, machine->processor, 0);
  if (run == MAP_FAILED) return -errno;
  machine->run = run;
  machine->run_size = (size_t)size;
  return 0;
}

int ckvm_open(struct ckvm **out) {
  struct ckvm *machine = calloc(1, sizeof *machine);
  if (!machine) return -ENOMEM;
  machine->device = machine->machine = machine->processor = -1;
  int error = set_up(machine);
  if (error) {
    ckvm_close(machine);
    return error;
  }
  *out = machine;
  return 0;
}

int ckvm_set_memory(struct ckvm *machine, uint64_t start, uint64_t length) {
  struct kvm_userspace_memory_region memory = {.memory_size = length, .userspace_addr = start};
  return call(machine->machine, KVM_SET_USER_MEMORY_REGION, &memory);
}

#if defined(__x86_64__)

int ckvm_set_mode(struct ckvm *machine, uint64_t page_table) {
  struct kvm_sregs state;
  int error = call(machine->processor, KVM_GET_SREGS, &state);
  if (error) return error;
  // The selectors that Linux gives user mode: a KVM without hardware support runs such a guest directly as well, and would
  // interpret any other instruction by instruction.
  state.cs = (struct kvm_segment){
    .limit = ~0u, .selector = 0x33, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
  state.ss = (struct kvm_segment){
    .limit = ~0u, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1};
  state.ds = state.es = state.fs = state.gs = state.ss;
  state.cr3 = page_table;
  state.cr4 |= 1u << 5;        // PAE
  state.cr0 |= 1u << 31 | 1u;  // PG, PE
  state.efer |= 1u << 10 | 1u << 8;  // LMA, LME
  return call(machine->processor, KVM_SET_SREGS, &state);
}

int ckvm_set_registers(struct ckvm *machine, const struct ckvm_registers *registers) {
  struct kvm_regs all = {
    .rax = registers->rax, .rcx = registers->rcx, .rdx = registers->rdx, .rsi = registers->rsi, .rdi = registers->rdi,
    .r8 = registers->r8, .r9 = registers->r9, .rip = registers->rip,
    .rflags = 3u << 12 | 2u,  // I/O privilege level 3: user mode may use ports
  };
  return call(machine->processor, KVM_SET_REGS, &all);
}

int ckvm_registers(struct ckvm *machine, struct ckvm_registers *out) {
  struct kvm_regs all;
  int error = call(machine->processor, KVM_GET_REGS, &all);
  if (error) return error;
  *out = (struct ckvm_registers){all.rax, all.rcx, all.rdx, all.rsi, all.rdi, all.r8, all.r9, all.rip};
  return 0;
}

#else

int ckvm_set_mode(struct ckvm *machine, uint64_t page_table) { return -EOPNOTSUPP; }
int ckvm_set_registers(struct ckvm *machine, const struct ckvm_registers *registers) { return -EOPNOTSUPP; }
int ckvm_registers(struct ckvm *machine, struct ckvm_registers *out) { return -EOPNOTSUPP; }

#endif

int ckvm_run(struct ckvm *machine, struct ckvm_stop *out) {
  int error = call(machine->processor, KVM_RUN, NULL);
  if (error) return error;
  struct kvm_run *run = machine->run;
  *out = (struct ckvm_stop){.exit = ckvm_exit_other, .reason = run->exit_reason};
  if (run->exit_reason == KVM_EXIT_MMIO) {
    out->exit = ckvm_exit_memory;
    out->address = run->mmio.phys_addr;
  } else if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT) {
    out->exit = ckvm_exit_out;
    // The instruction is over only when the guest is entered again; until then, new registers are not safe from it.
    run->immediate_exit = 1;
    error = call(machine->processor, KVM_RUN, NULL);
    run->immediate_exit = 0;
    if (error != -EINTR) return error < 0 ? error : -EIO;
  }
  return 0;
}

// The file begins with a header; each counter has a descriptor with its name, and its value is at an offset of its own.
int64_t ckvm_statistic(struct ckvm *machine, const char *name) {
  int fd = call(machine->processor, KVM_GET_STATS_FD, NULL);
  if (fd < 0) return fd;
  struct kvm_stats_header header = {0};
  char buffer[sizeof(struct kvm_stats_desc) + 256];
  struct kvm_stats_desc *counter = (struct kvm_stats_desc *)buffer;
  int64_t found = -ENOENT;
  if (pread(fd, &header, sizeof header, 0) != sizeof header) found = -EIO;
  size_t size = sizeof *counter + header.name_size;
  for (uint32_t i = 0; found == -ENOENT && size <= sizeof buffer && i < header.num_desc; i++) {
    if (pread(fd, buffer, size, (off_t)(header.desc_offset + i * size)) != (ssize_t)size) break;
    if (strncmp(counter->name, name, header.name_size) != 0) continue;
    uint64_t value;
    int64_t got = pread(fd, &value, sizeof value, (off_t)header.data_offset + counter->offset);
    found = got == sizeof value ? (int64_t)value : -EIO;
  }
  close(fd);
  return found;
}
