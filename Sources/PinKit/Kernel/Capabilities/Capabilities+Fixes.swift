internal import SystemPackage

/// What to type: each refusal has its own cause, told apart by how the other ways fared.
extension Capabilities {
  /// `UFFD_USER_MODE_ONLY` needs no privilege: only a filter refuses it with "not permitted".
  private var filterRefusesUserfaultfd: Bool {
    switch userfaultfd.userModeOnly {
    case .worked: false
    case .refused(.notPermitted), .refused(.permissionDenied): true
    case .refused(.noFunction): seccomp == .filter
    case .refused: false
    case .notTried: seccomp == .filter
    }
  }

  /// One line with all three answers.
  var userfaultfdRefusal: String {
    "no userfaultfd: /dev/userfaultfd: \(explain(userfaultfd.device)); userfaultfd(2): \(explain(userfaultfd.systemCall)); "
      + "with UFFD_USER_MODE_ONLY: \(explain(userfaultfd.userModeOnly))"
  }

  var userfaultfdFixes: [Fix] {
    let problem = "full userfaultfd"
    if Userfaultfd.Access.allCases.contains(where: { userfaultfd[$0].errno == .tooManyOpenFiles }) {
      return [
        Fix(problem: problem, command: "ulimit -n 65536", effect: "raises the limit on open descriptors of this shell")
      ]
    }
    if userfaultfd.systemCall.errno == .noFunction, seccomp == .disabled {
      return [
        Fix(
          problem: problem, command: "CONFIG_USERFAULTFD=y",
          effect: "a kernel built with it; no setting at run time can help")
      ]
    }
    return deviceFixes(problem) + systemCallFixes(problem)
  }

  private func deviceFixes(_ problem: String) -> [Fix] {
    switch userfaultfd.device.errno {
    case .permissionDenied:
      [
        Fix(
          problem: problem, command: "setfacl -m u:\(outerUser ?? effectiveUser):rw /dev/userfaultfd",
          effect: (outerUser == nil ? "" : "outside of this user namespace, where user \(effectiveUser) is that one: ")
            + "gives this user the device until the next boot; to keep it: a udev rule "
            + "`KERNEL==\"userfaultfd\", GROUP=\"userfaultfd\", MODE=\"0660\"`")
      ]
    case .noSuchFileOrDirectory, .notPermitted:
      container == nil && seccomp == .disabled && userfaultfd.device.errno == .noSuchFileOrDirectory
        ? [newKernel("6.1", "/dev/userfaultfd")]
        : [
          Fix(
            problem: problem, command: "\(runtime) run --device /dev/userfaultfd …",
            effect: "hands the host's device to the container; needs no seccomp change and no capability")
        ]
    default: []
    }
  }

  private func systemCallFixes(_ problem: String) -> [Fix] {
    var fixes: [Fix] = []
    if filterRefusesUserfaultfd {
      fixes.append(
        filterFix(
          problem, ["userfaultfd"], "gives UFFD_USER_MODE_ONLY at once, and the rest with one of the other settings"))
    }
    guard userfaultfd.systemCall.errno == .notPermitted || !fixes.isEmpty else { return fixes }
    if sysctls.unprivilegedUserfaultfd == 0 {
      fixes.append(
        Fix(
          problem: problem, command: "sysctl -w vm.unprivileged_userfaultfd=1",
          effect: "lets every user of the machine open one; add it to /etc/sysctl.d to keep it"))
    }
    if hasPtraceCapability != true {
      fixes.append(
        Fix(
          problem: problem, command: "setcap cap_sys_ptrace+ep /path/to/the/daemon",
          effect: "lets this one program open one; in a container: `--cap-add SYS_PTRACE`"))
    }
    return fixes
  }

  /// What to do about memory of a kind that cannot even be mapped.
  func memoryFixes(_ memory: MemoryKind) -> [Fix] {
    guard memory == .pool || memory == .hugetlb else { return [] }
    if mayBeFiltered(shmem.memory) { return [filterFix("memfd", ["memfd_create"])] }
    guard memory == .hugetlb, hugePages?.free == 0 else { return [] }
    return [
      Fix(
        problem: "huge pages", command: "sysctl -w vm.nr_hugepages=64",
        effect: "reserves 64 of \((hugePages?.pageSize ?? 2 << 20) >> 20) MiB for the machine; do it early, before memory "
          + "fragments")
    ]
  }

  var pagemapFix: Fix {
    pagemapScan.errno == .inappropriateIOCTLForDevice
      ? newKernel("6.7", "PAGEMAP_SCAN")
      : Fix(
        problem: "PAGEMAP_SCAN", command: "mount -t proc proc /proc",
        effect: "shows the process its own /proc/self/pagemap")
  }

  func newKernel(_ version: String, _ feature: String) -> Fix {
    Fix(problem: feature, command: "Linux \(version) or newer", effect: "this is \(kernelRelease)")
  }

  /// What no verdict hangs on, but some part of PinKit does.
  var otherFixes: [Fix] {
    var fixes: [Fix] = []
    let add = { (problem: String, command: String, effect: String) in
      fixes.append(Fix(problem: problem, command: command, effect: effect))
    }
    if !ioUring.didWork {
      if let disabled = sysctls.ioUringDisabled, disabled > 0 {
        add(
          "io_uring", "sysctl -w kernel.io_uring_disabled=0",
          "allows it to every user; 1 only to CAP_SYS_ADMIN and its group")
      } else if mayBeFiltered(ioUring) {
        fixes.append(filterFix("io_uring", ["io_uring_setup", "io_uring_enter", "io_uring_register"]))
      } else if ioUring.errno == .noMemory {
        add("io_uring", "ulimit -l unlimited", "rings count as locked memory on kernels before 5.12")
      } else {
        fixes.append(newKernel("5.6", "io_uring"))
      }
    }
    if let shmem = transparentHugePages.shmemEnabled, shmem == "never" || shmem == "deny" {
      add(
        "huge pages in pools", "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "lets memfds that ask for huge pages have them; until the next boot")
    }
    if let count = sysctls.maxMapCount, count < 262_144 {
      add(
        "room for mappings (\(count))", "sysctl -w vm.max_map_count=262144",
        "a clone that breaks away page by page may need one mapping each; add it to /etc/sysctl.d to keep it")
    }
    if let soft = openFiles.soft, soft < 4096 {
      add("descriptors (\(soft))", "ulimit -n 65536", "every region and clone has a userfaultfd of its own")
    }
    if let soft = lockedMemory.soft, soft < 64 << 20, effectiveUser != 0 {
      add(
        "locked memory (\(soft >> 10) KiB)", "ulimit -l unlimited",
        "fixed buffers count against it; LimitMEMLOCK= under systemd")
    }
    if !membarrier.didWork {
      let problem = "membarrier, private expedited"
      fixes.append(mayBeFiltered(membarrier) ? filterFix(problem, ["membarrier"]) : newKernel("4.14", problem))
    }
    return fixes
  }

  /// A filter answers with "not permitted", with "no such call", or kills.
  private func mayBeFiltered(_ attempt: Attempt) -> Bool {
    guard seccomp != .disabled else { return false }
    return switch attempt {
    case .worked: false
    case .refused(let errno): errno == .notPermitted || errno == .noFunction
    case .notTried: true
    }
  }

  /// How to allow system calls that a seccomp filter refuses.
  private func filterFix(_ problem: String, _ calls: [String], _ effect: String = "") -> Fix {
    let names = calls.map { "\"\($0)\"" }.joined(separator: ", ")
    return Fix(
      problem: problem, command: "\(runtime) run --security-opt seccomp=pinkit.json …",
      effect: (effect.isEmpty ? "" : effect + "; ")
        + "pinkit.json is the runtime's default profile with \(names) added to the names of an SCMP_ACT_ALLOW rule "
        + "(to try: seccomp=unconfined); under systemd: SystemCallFilter=\(calls.joined(separator: " "))")
  }

  private var runtime: String { container == "podman" ? "podman" : "docker" }
}
