import CTestSupport
import Foundation
import SystemPackage
import Testing

@testable import PinKit

/// `ulimit -f`, which counts memory files too: the kernel refuses with EFBIG, and sends a signal that ends the process.
@Suite("Programs with a limit on the size of files") struct FileSizeLimitTests {
  private static func space(patience: Double = 10) throws -> AddressSpace {
    ct_deadline(120)
    ct_unblock_signals()
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = .failRegion
    configuration.patience = patience
    configuration.logger = LogCapture().logger
    // The pool has one file.
    configuration.slices.most = 1
    return try AddressSpace(configuration: configuration)
  }

  private static func limit(_ bytes: UInt64) { check(ct_limit_file_size(bytes), is: 0, "setrlimit") }

  private static var isPending: Bool {
    var pending = sigset_t()
    return unsafe sigpending(&pending) == 0 && sigismember(&pending, SIGXFSZ) == 1
  }

  @Test("K5: regions, clones and memory files beyond the limit are errors, and those within it go on") func regions() async {
    await #expect(processExitsWith: .success) {
      let space = try Self.space()
      Self.limit(12 << 20)
      check(errorCode { _ = try space.map(.pool, pages: 4096) }, is: .limitReached)
      let region = try space.map(.pool, pages: 1024)
      try region.fill(with: 1)
      let clone = try region.clone()
      clone.poke(2, 7)
      // It needs a fourth extent.
      check(errorCode { _ = try clone.clone() }, is: .limitReached)
      check(errorCode { _ = try MemoryFile(name: "test", size: 16 << 20) }, is: .limitReached)
      check(region.peek(7), is: 1)
      clone.poke(3, 8)
      check(clone.peek(8), is: 3)
      Self.limit(0)
      let second = try clone.clone()
      check(second.peek(7), is: 2)
      check(Self.isPending, is: false, "a signal waits")
      try space.close()
    }
  }

  @Test(
    "K5, W5: who writes pages that clones share does so, though the limit came down since", arguments: Mechanisms.synchronous
  )
  func sharedPages(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      let space = try Self.space(patience: 2)
      let (region, clone) = try sharedPair(space, pages: 64, mechanism)
      Self.limit(4096)
      HostThread {
        for page in 0..<32 { clone.poke(201, page, at: 9) }
        for page in 16..<48 { region.poke(202, page, at: 9) }
        check(Self.isPending, is: false, "a signal waits")
      }.join()
      for page in 0..<64 {
        check(clone.peek(page), is: UInt8(page + 1), "page \(page)")
        check(clone.peek(page, at: 9), is: page < 32 ? 201 : 0, "page \(page) of the clone")
        check(region.peek(page, at: 9), is: (16..<48).contains(page) ? 202 : 0, "page \(page) of the region")
      }
      Self.limit(0)
      try space.close()
    }
  }

  @Test(
    "K5: a flush beyond the limit is an error and no signal, loses nothing, and works when the limit is lifted",
    arguments: [false, true])
  func flush(_ forbidsRing: Bool) async {
    await #expect(processExitsWith: .success) { [forbidsRing = forbidsRing as Bool] in
      let directory = try ImageDirectory()
      let space = try Self.space()
      if forbidsRing { check(ct_forbid_io_uring(), is: 0) }
      let region = try space.map(.file(try FileStore(path: directory("file"), creating: 64 * 4096)), pages: 64)
      for page in stride(from: 0, to: 64, by: 3) { region.poke(9, page) }
      Self.limit(20 * 4096)
      check(errorCode { try region.flush() }, is: .limitReached)
      check(Self.isPending, is: false, "a signal waits")
      try check(region.filePageState(63).isDirty, is: true)
      Self.limit(0)
      try region.flush()
      let bytes = try Data(contentsOf: URL(fileURLWithPath: directory("file")))
      for page in 0..<64 { check(bytes[page * 4096], is: page % 3 == 0 ? 9 : 0, "page \(page)") }
      try region.unmap()
      try space.close()
    }
  }

  @Test("K5: stores and images beyond the limit are errors and leave no file behind", arguments: [false, true])
  func files(_ forbidsRing: Bool) async {
    await #expect(processExitsWith: .success) { [forbidsRing = forbidsRing as Bool] in
      let directory = try ImageDirectory()
      let space = try Self.space()
      if forbidsRing { check(ct_forbid_io_uring(), is: 0) }
      let region = try space.map(.anonymous, pages: 512)
      try region.fill(with: 1)
      let snapshot = try region.snapshot()
      Self.limit(256 << 10)
      check(errorCode { _ = try FileStore(path: directory("store"), creating: 1 << 20) }, is: .limitReached)
      check(errorCode { _ = try snapshot.write(to: directory("image")) }, is: .limitReached)
      check(directory.names, is: [])
      check(Self.isPending, is: false, "a signal waits")
      Self.limit(0)
      _ = try snapshot.write(to: directory("image"))
      snapshot.close()
      try space.close()
    }
  }

  @Test("K5: a signal that waits for a write of the program's own goes on waiting, and its mask and handlers stay")
  func own() async {
    await #expect(processExitsWith: .success) {
      let space = try Self.space()
      HostThread {
        var set = sigset_t()
        unsafe sigemptyset(&set)
        unsafe sigaddset(&set, SIGXFSZ)
        check(unsafe pthread_sigmask(SIG_BLOCK, &set, nil), is: 0)
        check(pthread_kill(pthread_self(), SIGXFSZ), is: 0)
        Self.limit(4096)
        check(errorCode { _ = try space.map(.pool, pages: 512) }, is: .limitReached)
        check(Self.isPending, is: true, "the program's signal is gone")
        check(ct_is_blocked(SIGXFSZ), is: 1)
        var taken: CInt = 0
        check(unsafe sigwait(&set, &taken), is: 0)
        check(errorCode { _ = try space.map(.pool, pages: 512) }, is: .limitReached)
        check(Self.isPending, is: false, "a signal waits")
        Self.limit(0)
      }.join()
      try space.close()
    }
  }
}
