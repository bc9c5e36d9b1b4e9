internal import CUffd
internal import SystemPackage

extension Capabilities {
  /// Tries everything once, and undoes it.
  ///
  /// Takes a few milliseconds and never fails: what is forbidden or missing is recorded. Leaves no descriptor and no mapping
  /// behind. Under a seccomp filter, system calls that the filter may answer by killing the process are tried in a child first.
  public static func probe() -> Capabilities {
    var found = Capabilities()
    found.readSystem()
    found.probeUserfaultfd()
    found.probeBackings()
    found.pagemapScan = attempt { () throws(PinError) in
      let page = try Mapping(count: Memory.pageSize)
      try PageMap().scan(page.range, PageMap.Query(anyOf: .present)) { _, _ in }
    }
    found.ioUring = found.guarded(cuffd_probe_io_uring) { () throws(PinError) in _ = try SubmissionRing(entries: 1) }
    found.membarrier = found.guarded(cuffd_probe_membarrier) { () throws(PinError) in
      try PinError.check(cuffd_probe_membarrier_expedited(), "membarrier")
    }
    return found
  }

  private mutating func probeUserfaultfd() {
    for way in Userfaultfd.Access.allCases {
      let open = { () throws(PinError) in _ = try Userfaultfd(features: [], access: [way]) }
      userfaultfd[way] =
        switch way {
        case .device: Self.attempt(open)
        case .systemCall: guarded(cuffd_probe_userfaultfd, open)
        case .userModeOnly: guarded(cuffd_probe_user_mode_userfaultfd, open)
        }
    }
    if let way = userfaultfd.best { features = Self.features(offeredBy: way) }
  }

  /// A handshake that asks for nothing is told everything.
  private static func features(offeredBy way: Userfaultfd.Access) -> Userfaultfd.Features {
    let descriptor = cuffd_open(way.rawValue)
    guard descriptor >= 0 else { return [] }
    defer { cuffd_close(descriptor) }
    var (offered, ioctls) = (UInt64(0), UInt64(0))
    let result = unsafe cuffd_api(descriptor, 0, &offered, &ioctls)
    return Userfaultfd.Features(rawValue: result < 0 ? 0 : offered)
  }

  private mutating func probeBackings() {
    anonymous = registrations(count: Memory.pageSize) { () throws(PinError) in .anonymous }

    let memfd = guarded(cuffd_probe_memfd) { () throws(PinError) in _ = try MemoryFile(name: "probe", size: 0) }
    if memfd.didWork {
      shmem = registrations { () throws(PinError) in try MemoryFile(name: "probe", size: Memory.pageSize) }
      let huge = hugePages?.pageSize ?? 2 << 20
      hugetlb = registrations { () throws(PinError) in try MemoryFile(name: "probe", size: huge, options: .hugetlb) }
      if hugetlb.memory.errno == .noMemory { hugetlb = Backing(all: .notTried("no huge pages reserved")) }
    } else {
      (shmem, hugetlb) = (Backing(all: memfd), Backing(all: memfd))
    }

    let directory = Self.temporaryDirectory
    let descriptor = unsafe directory.withCString { unsafe cuffd_temporary_file($0) }
    guard descriptor >= 0 else {
      let errno = Errno(rawValue: -descriptor)
      file = Backing(all: .notTried("no temporary file in \(directory): \(errno)"))
      return
    }
    defer { cuffd_close(descriptor) }
    _ = cuffd_resize(descriptor, Int64(Memory.pageSize))
    fileSystem = Self.fileSystemName(descriptor)
    file = registrations(count: Memory.pageSize) { .file(descriptor, offset: 0, shared: true) }
  }

  private func registrations(
    _ make: () throws(PinError) -> MemoryFile
  ) -> Backing {
    do throws(PinError) {
      let file = try make()
      let descriptor = file.descriptor
      return registrations(count: file.size) { .file(descriptor, offset: 0, shared: true) }
    } catch {
      return Backing(all: Attempt(error))
    }
  }

  private func registrations(count: Int, _ source: () throws(PinError) -> Mapping.Source) -> Backing {
    do throws(PinError) {
      let mapping = try Mapping(count: count, source: try source())
      let range = mapping.range
      var backing = Backing(all: .notTried("no userfaultfd"))
      backing.memory = Self.attempt { () throws(PinError) in
        try PinError.check(Memory.protect(range, .read), "mprotect", range)
        try PinError.check(Memory.protect(range, .readWrite), "mprotect", range)
      }
      guard let way = userfaultfd.best else { return backing }
      // All that registering a range can depend on; what the kernel lacks, it refuses by itself.
      let needed: Userfaultfd.Features = [
        .pagefaultFlagWP, .missingHugetlbfs, .missingShmem, .minorHugetlbfs, .minorShmem, .wpHugetlbfsShmem,
      ]
      let offered = needed.intersection(features)
      let register = { (mode: Userfaultfd.RegisterMode, extra: Userfaultfd.Features) in
        Self.attempt { () throws(PinError) in
          let descriptor = try Userfaultfd(features: offered.union(extra), access: [way])
          try descriptor.register(range, for: mode)
          try descriptor.unregister(range)
        }
      }
      backing.missing = register(.missing, [])
      backing.minor = register(.minor, [])
      backing.writeProtect = register(.writeProtect, [])
      backing.writeProtectAsync = register(.writeProtect, [.wpAsync, .wpUnpopulated])
      return backing
    } catch {
      return Backing(all: Attempt(error))
    }
  }

  static func attempt(_ body: () throws(PinError) -> Void) -> Attempt {
    do throws(PinError) {
      try body()
      return .worked
    } catch {
      return Attempt(error)
    }
  }

  /// Tries `body`, unless a seccomp filter is known to kill whoever makes the call.
  private func guarded(_ call: cuffd_probe, _ body: () throws(PinError) -> Void) -> Attempt {
    guard seccomp != .disabled else { return Self.attempt(body) }
    var signal: CInt = 0
    let result = unsafe cuffd_probe_in_child(CInt(call.rawValue), &signal)
    switch signal {
    case 0: return Self.attempt(body)
    case -1: return .notTried("seccomp might kill the process, and no child could be made to find out (errno \(-result))")
    default: return .notTried("the seccomp filter kills a process that calls it (signal \(signal))")
    }
  }
}

extension Capabilities.Attempt {
  init(_ error: PinError) {
    self = error.errno.map { .refused($0) } ?? .notTried("\(error)")
  }
}

extension Capabilities.UserfaultfdAccess {
  /// The first way that worked.
  var best: Userfaultfd.Access? { Userfaultfd.Access.allCases.first { self[$0].didWork } }
}
