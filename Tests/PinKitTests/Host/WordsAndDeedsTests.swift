import CTestSupport
import Glibc
import SystemPackage
import Testing

@testable import PinKit

@Suite("What memory is, and what a process may do to itself") struct WordsAndDeedsTests {
  @Test("K5: a file of tmpfs is shared memory, with its name or without", .needs(.tmpfs), arguments: [true, false])
  func tmpfs(_ isNamed: Bool) throws {
    let mount = try MountedGround(.tmpfs)
    let mapping = try GroundMapping(.tmpfs, mount, shared: true, named: isNamed)
    let space = try AddressSpace.forTests()
    let region = try space.adopt(mapping.range)
    #expect(region.backing.kind == .adopted(.sharedMemory), "\(region.backing)")
    #expect(try !region.needsDirtyTracking)
    try region.fill(with: 7)
    let snapshot = try region.snapshot(SnapshotOptions(mechanism: .handlerThread))
    try region.fill(with: 8)
    #expect(try snapshot.read(1)[0] == 7)
    snapshot.close()
    try space.close()
  }

  @Test("P1: a file on a disk that has lost its name stays a file", .needs(.ext4)) func unnamed() throws {
    let mount = try MountedGround(.ext4)
    let mapping = try GroundMapping(.ext4, mount, shared: true, named: false)
    let space = try AddressSpace.forTests()
    let region = try space.adopt(mapping.range)
    #expect(region.backing.support == Backing(kind: .adopted(.file(path: "", isShared: true))).support)
    #expect(try region.needsDirtyTracking)
    try space.close()
  }

  @Test("K5: System V memory is watched in the ways that its backing says", arguments: Mechanisms.all)
  func systemV(_ mechanism: WriteTracking.Mechanism) throws {
    let id = shmget(0, 16 * 4096, 0o600 | 0o1000)  // IPC_PRIVATE, IPC_CREAT
    try #require(id >= 0)
    let memory = unsafe try #require(unsafe shmat(id, nil, 0))
    try #require(unsafe memory != UnsafeMutableRawPointer(bitPattern: -1))
    shmctl(id, 0, nil)  // IPC_RMID: gone with the mapping
    defer { unsafe shmdt(memory) }
    let space = try AddressSpace.forTests()
    let region = try unsafe space.adopt(UnsafeMutableRawBufferPointer(start: memory, count: 16 * 4096))
    try region.fill(with: 1)
    #expect(try !region.needsDirtyTracking)
    #expect(try region.pinVerdict(for: .writing, lasting: .long).isAllowed)
    let isPossible = region.backing.support.contains(
      mechanism == .asynchronous ? .asynchronousTracking : mechanism == .mprotect ? .mprotectTracking : .synchronousFaults)
    #expect(isPossible == (mechanism == .asynchronous || mechanism == .mprotect))
    if isPossible {
      let tracker = try region.trackWrites(mechanism)
      try region.setByte(9, 3)
      #expect(try Array(tracker.collect().pages) == [3])
      try tracker.stop()
    } else {
      #expect(throws: PinError.self) { try region.trackWrites(mechanism) }
    }
    let snapshot = try region.snapshot()
    try region.setByte(5, 4)
    #expect(try snapshot.read(4)[0] == 1)
    snapshot.close()
    try region.endSnapshots()
    let error = #expect(throws: PinError.self) { try region.discard(0..<1) }
    #expect(error?.code == .unsupported)
    try space.close()
  }

  @Test("K5: a user who may have no more threads is told so", .enabled(if: geteuid() == 0, "needs root"))
  func threadLimit() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let region = try space.map(.anonymous, pages: 4)
      var none = rlimit(rlim_cur: 0, rlim_max: 0)
      check(unsafe setrlimit(__rlimit_resource_t(6), &none), is: 0)  // RLIMIT_NPROC
      check(setuid(65_534), is: 0)
      do {
        _ = try region.trackWrites(.mprotect)
        check(false, "threads were started")
      } catch let error as PinError {
        check(error.code, is: .limitReached)
        check(error.description.contains("ulimit -u") && error.description.contains("pids.max"), "\(error)")
      }
    }
  }

  @Test(
    "K5: so is who seals, where the thread that takes pages out cannot be started",
    .enabled(if: geteuid() == 0, "needs root"))
  func threadLimitOfDrops() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 16)
      try region.setSealer(RecordingSealer())
      for page in 0..<16 { try region.store(UInt64(7), toByteOffset: page * 4096) }
      var none = rlimit(rlim_cur: 0, rlim_max: 0)
      check(unsafe setrlimit(__rlimit_resource_t(6), &none), is: 0)  // RLIMIT_NPROC
      check(setuid(65_534), is: 0)
      do {
        try region.seal(0..<16)
        check(false, "a thread was started")
      } catch let error as PinError {
        check(error.code, is: .limitReached)
        check(error.errno, is: .resourceTemporarilyUnavailable)
        check(error.description.contains("ulimit -u") && error.description.contains("pids.max"), "\(error)")
      }
      try check(region.load(fromByteOffset: 4096, as: UInt64.self), is: 7)
    }
  }

  @Test("K5: a process that has changed its user is told what hides /proc/self", .enabled(if: geteuid() == 0, "needs root"))
  func notDumpable() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      check(setuid(65_534), is: 0)
      do {
        _ = try PageMap()
        check(false, "/proc/self/pagemap can be read")
      } catch let error as PinError {
        check(error.code, is: .permissionDenied)
        check(error.description.contains("PR_SET_DUMPABLE"), "\(error)")
      }
    }
  }

  @Test("K5: a relative path stays the file's when the program changes its directory") func directories() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let directory = try ImageDirectory()
      check(unsafe chdir(directory("")), is: 0)
      let store = try FileStore(path: "store", creating: 4 * 4096)
      let space = try AddressSpace.forTests()
      let region = try space.map(.file(store), pages: 4)
      try region.setByte(7, 2)
      let plain = try space.map(.anonymous, pages: 4)
      try plain.setByte(9, 1)
      let image = try plain.snapshot().write(to: "image")
      check(unsafe chdir("/"), is: 0)
      check(store.path?.hasPrefix("/") == true, "\(store.path ?? "")")
      try region.flush()
      try image.verify()
      try plain.setByte(0, 1)
      try plain.restore(from: [image])
      try check(plain.byte(1), is: 9)
      try space.close()
    }
  }

  @Test("K5: the setting for a user is named as the machine knows the user") func users() {
    #expect(Capabilities.outerUser(0, map: "         0       1000          1\n") == 1000)
    #expect(Capabilities.outerUser(5, map: "0 1000 1\n1 100000 65536\n") == 100_004)
    #expect(Capabilities.outerUser(0, map: "         0          0 4294967295\n") == nil)
    #expect(Capabilities.outerUser(7, map: "0 1000 1\n") == nil)
    var machine = Capabilities()
    machine.userfaultfd.device = .refused(.permissionDenied)
    machine.outerUser = 1000
    let commands = machine.userfaultfdFixes.map(\.command)
    #expect(commands.contains("setfacl -m u:1000:rw /dev/userfaultfd"), "\(commands)")
  }

  /// In bytes.
  private static func pageTables() throws -> Int {
    let line = try ProcessMaps.readFile("/proc/self/status").split(separator: "\n").first { $0.hasPrefix("VmPTE:") }
    return (line?.split(separator: " ").compactMap { Int($0) }.first ?? 0) << 10
  }

  @Test(
    "K7: the page tables of a sparse region are given back with its snapshots, and nothing that was written meanwhile is lost",
    .enabled(if: KernelVersion.isAtLeast(6, 14), "needs Linux 6.14"),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer's shadow has page tables, too"),
    arguments: [Subject.anonymous, .pool, .adoptedAnonymous])
  func pageTablesGoBack(_ subject: Subject) async throws {
    await #expect(processExitsWith: .success) { [name = subject.rawValue as String] in
      ct_deadline(300)
      let pages = (8 << 30) / 4096
      let space = try AddressSpace.forTests()
      try Subject(rawValue: name)!.with(space, pages: pages) { region in
        let before = try WordsAndDeedsTests.pageTables()
        let snapshot = try region.snapshot()
        for page in stride(from: 5, to: pages, by: pages / 16) { try region.setByte(7, page) }
        let during = try WordsAndDeedsTests.pageTables()
        check(during > before + 8 << 20, "\(before) \(during)")
        snapshot.close()
        // Writers bring pages in all the while.
        let threads = HostThreads()
        for writer in 0..<2 {
          threads.start {
            for page in stride(from: 1000 + writer * 8, to: pages, by: 1021) { region.poke(UInt8(writer) + 1, page) }
          }
        }
        try region.endSnapshots()
        threads.join()
        for writer in 0..<2 {
          for page in stride(from: 1000 + writer * 8, to: pages, by: 1021) where region.peek(page) != UInt8(writer) + 1 {
            check(false, "the write to page \(page) is lost")
          }
        }
        // Once more, of nothing: now every table goes.
        try region.discard(0..<pages)
        try region.snapshot().close()
        let armed = try WordsAndDeedsTests.pageTables()
        check(armed > before + 8 << 20, "\(before) \(armed)")
        try region.endSnapshots()
        let after = try WordsAndDeedsTests.pageTables()
        check(after < before + 4 << 20, "\(before) before, \(after) after")
      }
      try space.close()
    }
  }
}
