import CUffd
import Foundation
import SystemPackage
import Testing

@testable import PinKit

@Suite("Capabilities, probed")
struct CapabilitiesProbeTests {
  @Test("a probe knows the machine")
  func machine() {
    let found = Capabilities.probe()
    #expect(!found.kernelRelease.isEmpty)
    #expect(found.pageSize == Memory.pageSize)
    #expect(found.effectiveUser == geteuid())
    #expect(found.anonymous.memory == .worked)
    #expect(found.anonymous.minor != .worked)  // private memory has no minor faults
    #expect(found.openFiles.soft != 0)
    #expect(found.canRun)
  }

  @Test("what a probe found survives JSON")
  func json() throws {
    let found = Capabilities.probe()
    #expect(try JSONDecoder().decode(Capabilities.self, from: JSONEncoder().encode(found)) == found)
  }

  @Test("a probe leaves no descriptor, mapping or child behind")
  func leaks() async {
    await #expect(processExitsWith: .success) {
      let descriptors = { try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count }
      _ = Capabilities.probe()
      let before = try descriptors()
      for _ in 0..<8 { _ = Capabilities.probe() }
      // The process opens and closes some of its own meanwhile; a leak of the probe's shows each time.
      #expect(try descriptors() < before + 8)
      #expect(try !ProcessMaps.readFile("/proc/self/maps").contains("memfd:probe"))
      #expect(waitpid(-1, nil, 0) == -1)
    }
  }

  @Test("where every userfaultfd is refused, the rest is still found, and mprotect is what is left")
  func noUserfaultfd() async {
    await #expect(processExitsWith: .success) {
      cuffd_inject(CInt(cuffd_call_open.rawValue), 1, 0, 1_000)
      let found = Capabilities.probe()
      for way in Userfaultfd.Access.allCases { #expect(found.userfaultfd[way] == .refused(.notPermitted)) }
      #expect(found.features.isEmpty)
      #expect(found.anonymous.writeProtect == .notTried("no userfaultfd"))
      #expect(found.canRun)
      #expect(found.verdicts.allSatisfy { $0.mechanism == .mprotect || !$0.isAvailable })
    }
  }

  @Test("a process that has no descriptor left finds that out instead of crashing")
  func noDescriptors() async {
    await #expect(processExitsWith: .success) {
      _ = Memory.pageSize
      var limit = rlimit(rlim_cur: 3, rlim_max: 3)
      try #require(unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0)
      let found = Capabilities.probe()
      #expect(!found.userfaultfd.systemCall.didWork)
      #expect(found.userfaultfd.userModeOnly.errno != .notPermitted)
      #expect(found.ioUring == .refused(.tooManyOpenFiles))
      #expect(found.hasPtraceCapability == nil)
      #expect(found.canRun)
      #expect(found.fixes.contains { $0.command.hasPrefix("ulimit -n") })
    }
  }

  @Test(
    "without /proc, /sys, /dev and /tmp a probe finds what does not need them", .enabled(if: geteuid() == 0, "needs root"))
  func emptyRoot() async {
    await #expect(processExitsWith: .success) {
      let root = "\(Capabilities.temporaryDirectory)/pinkit-root-\(getpid())"
      try #require(unsafe mkdir(root, 0o700) == 0)
      try #require(unsafe chdir(root) == 0)
      try #require(unsafe rmdir(root) == 0)  // nothing is left of it but this process's directory
      try #require(unsafe chroot(".") == 0)
      let found = Capabilities.probe()
      #expect(found.seccomp == nil)
      #expect(found.sysctls == Capabilities.Sysctls())
      #expect(found.userfaultfd.device == .refused(.noSuchFileOrDirectory))
      #expect(found.pagemapScan == .refused(.noSuchFileOrDirectory))
      #expect(found.ioUring.didWork == hasRing)  // tried in a child first: a filter cannot be ruled out
      #expect(found.file.memory.errno == nil)
      #expect(found.canRun)
      #expect(found.fixes.contains { $0.command == "mount -t proc proc /proc" } == !found.features.isEmpty)
    }
  }
}

private let hasRing = (try? SubmissionRing(entries: 1)) != nil

@Suite("Capabilities, made up")
struct CapabilitiesAdviceTests {
  /// A machine that allows everything.
  private func ideal() -> Capabilities {
    var made = Capabilities()
    made.kernelRelease = "6.18.0"
    made.hasPtraceCapability = true
    made.seccomp = .disabled
    made.userfaultfd = .init(device: .worked, systemCall: .worked, userModeOnly: .worked)
    made.features = [.pagefaultFlagWP, .sigbus, .wpHugetlbfsShmem, .wpUnpopulated, .wpAsync]
    made.anonymous = .init(all: .worked)
    made.shmem = .init(all: .worked)
    made.hugetlb = .init(all: .worked)
    made.file = .init(all: .refused(.invalidArgument))
    made.file.memory = .worked
    made.file.writeProtectAsync = .worked
    made.fileSystem = "ext4"
    (made.pagemapScan, made.ioUring, made.membarrier, made.pageCounts) = (.worked, .worked, .worked, .worked)
    made.hugePages = .init(pageSize: 2 << 20, total: 64, free: 64)
    made.transparentHugePages = .init(enabled: "madvise", shmemEnabled: "advise")
    made.sysctls = .init(
      unprivilegedUserfaultfd: 0, maxMapCount: 262_144, overcommitMemory: 0, ioUringDisabled: 0)
    return made
  }

  private func verdict(
    _ made: Capabilities, _ mechanism: Capabilities.Mechanism, _ memory: Capabilities.MemoryKind
  ) throws -> Capabilities.Verdict {
    try #require(made.verdicts.first { $0.mechanism == mechanism && $0.memory == memory })
  }

  @Test("there is one verdict for every mechanism on every memory")
  func complete() {
    let verdicts = ideal().verdicts
    #expect(verdicts.count == 16)
    #expect(Set(verdicts.map { "\($0.mechanism) \($0.memory)" }).count == 16)
  }

  @Test("where everything is allowed, only files on ext4 are limited, and nothing is advised")
  func everything() throws {
    let made = ideal()
    for verdict in made.verdicts where verdict.memory != .adoptedFile { #expect(verdict.isAvailable) }
    #expect(try !verdict(made, .handlerThread, .adoptedFile).isAvailable)
    #expect(try !verdict(made, .inPlace, .adoptedFile).isAvailable)
    #expect(try verdict(made, .asynchronous, .adoptedFile).isAvailable)
    #expect(try verdict(made, .mprotect, .adoptedFile).isAvailable)
    #expect(made.fixes.isEmpty)
  }

  @Test("before Linux 6.4 userfaultfd does not keep what is not there yet, and no mechanism works that rests on it")
  func unpopulated() throws {
    var made = ideal()
    made.features.remove(.wpUnpopulated)
    for memory in [Capabilities.MemoryKind.anonymous, .pool, .hugetlb] {
      for mechanism in [Capabilities.Mechanism.handlerThread, .inPlace, .asynchronous] {
        let found = try verdict(made, mechanism, memory)
        #expect(!found.isAvailable && found.reason.contains("WP_UNPOPULATED"))
        #expect(found.fixes.contains { "\($0)".contains("6.4") })
      }
      #expect(try verdict(made, .mprotect, memory).isAvailable)
    }
  }

  @Test("an unprivileged user gets everything but system calls, and is told the three ways to those")
  func unprivileged() throws {
    var made = ideal()
    made.effectiveUser = 1000
    made.hasPtraceCapability = false
    made.userfaultfd = .init(
      device: .refused(.permissionDenied), systemCall: .refused(.notPermitted), userModeOnly: .worked)
    let handler = try verdict(made, .handlerThread, .pool)
    #expect(handler.isAvailable)
    #expect(handler.reason.contains("UFFD_USER_MODE_ONLY"))
    #expect(
      handler.fixes.map(\.command) == [
        "setfacl -m u:1000:rw /dev/userfaultfd", "sysctl -w vm.unprivileged_userfaultfd=1",
        "setcap cap_sys_ptrace+ep /path/to/the/daemon",
      ])
    #expect(try verdict(made, .asynchronous, .pool) == verdict(ideal(), .asynchronous, .pool))
  }

  @Test("a refusal of UFFD_USER_MODE_ONLY is the seccomp filter's", arguments: [Errno.notPermitted, .noFunction])
  func filtered(errno: Errno) throws {
    var made = ideal()
    made.seccomp = .filter
    made.container = "docker"
    made.userfaultfd = .init(
      device: .refused(.noSuchFileOrDirectory), systemCall: .refused(errno), userModeOnly: .refused(errno))
    made.features = []
    made.ioUring = .refused(errno)
    let handler = try verdict(made, .handlerThread, .anonymous)
    #expect(!handler.isAvailable)
    #expect(handler.fixes.map(\.command).contains("docker run --device /dev/userfaultfd …"))
    #expect(
      handler.fixes.contains { $0.command.contains("--security-opt seccomp=") && $0.effect.contains("\"userfaultfd\"") })
    #expect(made.fixes.contains { $0.problem == "io_uring" && $0.effect.contains("io_uring_setup") })
    #expect(try verdict(made, .mprotect, .anonymous).isAvailable)
    #expect(made.canRun)
  }

  @Test("a kernel that lacks something is told apart from one that forbids it")
  func oldKernels() throws {
    var made = ideal()
    made.features.remove(.wpAsync)
    #expect(try verdict(made, .asynchronous, .anonymous).fixes.map(\.command) == ["Linux 6.7 or newer"])
    #expect(try verdict(made, .handlerThread, .anonymous).isAvailable)

    made.features.remove(.wpHugetlbfsShmem)
    made.shmem.writeProtect = .refused(.invalidArgument)
    #expect(try verdict(made, .inPlace, .pool).fixes.map(\.command) == ["Linux 5.19 or newer"])

    made = ideal()
    made.pagemapScan = .refused(.inappropriateIOCTLForDevice)
    #expect(try verdict(made, .asynchronous, .pool).fixes.map(\.command) == ["Linux 6.7 or newer"])

    made.userfaultfd = .init(
      device: .refused(.noSuchFileOrDirectory), systemCall: .refused(.noFunction), userModeOnly: .refused(.noFunction))
    #expect(try verdict(made, .inPlace, .anonymous).fixes.map(\.command) == ["CONFIG_USERFAULTFD=y"])
  }

  @Test("missing huge pages ask for the sysctl, and only there")
  func hugePages() throws {
    var made = ideal()
    made.hugetlb = .init(all: .notTried("no huge pages reserved"))
    made.hugePages = .init(pageSize: 2 << 20, total: 0, free: 0)
    let verdict = try verdict(made, .mprotect, .hugetlb)
    #expect(!verdict.isAvailable)
    #expect(verdict.reason.contains("no huge pages reserved"))
    #expect(made.fixes.map(\.command) == ["sysctl -w vm.nr_hugepages=64"])
  }

  @Test("limits that fall short are named with their setting")
  func limits() {
    var made = ideal()
    made.sysctls.maxMapCount = 65_530
    made.sysctls.ioUringDisabled = 2
    made.ioUring = .refused(.notPermitted)
    made.transparentHugePages.shmemEnabled = "never"
    made.openFiles = .init(soft: 1024, hard: 1 << 20)
    #expect(
      Set(made.fixes.map(\.command)) == [
        "sysctl -w vm.max_map_count=262144", "sysctl -w kernel.io_uring_disabled=0", "ulimit -n 65536",
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
      ])
  }

  @Test("a value that knows nothing cannot run")
  func nothing() {
    #expect(!Capabilities().canRun)
    #expect(Capabilities().verdicts.count == 16)
  }

  @Test(
    "an attempt survives JSON",
    arguments: [Capabilities.Attempt.worked, .refused(.notPermitted), .notTried("no huge pages reserved")])
  func attempt(_ attempt: Capabilities.Attempt) throws {
    #expect(try JSONDecoder().decode(Capabilities.Attempt.self, from: JSONEncoder().encode(attempt)) == attempt)
  }
}
