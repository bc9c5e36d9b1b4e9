import CTestSupport
import Glibc
import Testing

@testable import PinKit

@Suite("Guard pages", .serialized) struct GuardPageTests {
  @Test(
    "K6, W6: beside guard pages under adopted memory writers go on, and a snapshot is right for all other pages",
    .enabled(if: GuardPages.areKnown, "needs MADV_GUARD_INSTALL (Linux 6.13)"), arguments: Mechanisms.synchronous)
  func guards(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(600)
      for subject in [Subject.adoptedAnonymous, .adoptedShared] {
        for moment in GuardPages.Moment.allCases where GuardPages.canInstall(mechanism, subject, moment) {
          try GuardScenario.run(mechanism, subject, moment)
        }
      }
    }
  }

  @Test(
    "K6: a sweep passes guard pages", .enabled(if: GuardPages.areKnown, "needs MADV_GUARD_INSTALL (Linux 6.13)"),
    arguments: [Subject.adoptedAnonymous, .adoptedShared])
  func sweeps(_ subject: Subject) async {
    await #expect(processExitsWith: .success) { [name = subject.rawValue as String] in
      ct_deadline(600)
      let subject = Subject(rawValue: name)!
      for moment in [GuardPages.Moment.beforeAdopting, .beforeSnapshot] {
        let memory = try ForeignMemory(subject, pages: GuardPages.count)
        defer { memory.unmap() }
        if moment == .beforeAdopting { GuardPages.install(memory.range) }
        let space = try AddressSpace.forTests()
        let region = try space.adopt(memory.range)
        try region.write(version: 1, to: moment == .beforeAdopting ? GuardPages.others : Array(0..<GuardPages.count))
        if moment == .beforeSnapshot { GuardPages.install(memory.range) }
        // Pages of zeros take no memory.
        try region.write(version: 0, to: [5, 100, 101])
        let snapshot = try region.snapshot(.init(sweep: true))
        while snapshot.capturedBytes < (GuardPages.others.count - 3) * 4096 { sched_yield() }
        try region.unmap()
        check(snapshot.capturedBytes, is: (GuardPages.others.count - 3) * 4096)
        try check(snapshot.wrongPages(of: GuardPages.others.filter { ![5, 100, 101].contains($0) }, version: 1), is: [])
        try check(snapshot.wrongPages(of: [5, 100, 101], version: 0), is: [])
        for page in GuardPages.pages { check(code { _ = try snapshot.read(page) }, is: .inaccessible) }
        check(snapshot.failure == nil, "the snapshot is not given up")
        snapshot.close()
        try space.close()
      }
    }
  }

  @Test(
    "W6: a page that was a guard page at one snapshot is watched at the next",
    .enabled(if: GuardPages.canBeFound, "needs PAGE_IS_GUARD (Linux 6.15)"), arguments: Mechanisms.synchronous)
  func removed(_ mechanism: WriteTracking.Mechanism) throws {
    for subject in [Subject.adoptedAnonymous, .adoptedShared] {
      let memory = try ForeignMemory(subject, pages: GuardPages.count)
      defer { memory.unmap() }
      GuardPages.install(memory.range)
      let space = try AddressSpace.forTests()
      let region = try space.adopt(memory.range)
      try region.write(version: 1, to: GuardPages.others)
      let first = try region.snapshot(.init(mechanism: mechanism))
      for page in GuardPages.pages { #expect(GuardPages.remove(memory.range, page)) }
      try region.write(version: 2, to: GuardPages.pages)
      let second = try region.snapshot(.init(mechanism: mechanism))
      try region.write(version: 3, to: 0..<GuardPages.count)
      #expect(try second.wrongPages(of: GuardPages.pages, version: 2) == [])
      #expect(try second.wrongPages(of: GuardPages.others, version: 1) == [])
      for page in GuardPages.pages { #expect(try second.changes(since: first).contains(page)) }
      // It has no bytes for the first, whatever it has now.
      try GuardPages.expect(first, "the first")
      first.close()
      second.close()
      try region.unmap()
      try space.close()
    }
  }

  @Test(
    "K6: guard pages of memory that is tracked or pinned harm nobody",
    .enabled(if: GuardPages.areKnown, "needs MADV_GUARD_INSTALL (Linux 6.13)"), arguments: Mechanisms.all)
  func tracks(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(600)
      for subject in [Subject.adoptedAnonymous, .adoptedShared] {
        let memory = try ForeignMemory(subject, pages: GuardPages.count)
        defer { memory.unmap() }
        GuardPages.install(memory.range)
        let space = try AddressSpace.forTests()
        let region = try space.adopt(memory.range)
        try region.write(version: 1, to: GuardPages.others)
        let tracker = try region.trackWrites(
          mechanism, options: .init(faultAround: mechanism == .asynchronous ? .exact : .fixed(128)))
        for version in UInt64(2)...4 {
          try region.write(version: version, to: GuardPages.others)
          let dirty = try tracker.collect()
          for page in GuardPages.others { check(dirty.contains(page), "page \(page) is dirty") }
        }
        for page in GuardPages.pages { check(GuardPages.isGuard(memory.range, page), "page \(page) is a guard page") }
        try tracker.stop()
        try region.unmap()
        try space.close()
      }
    }
  }

  @Test(
    "Where nothing answers with an error, a guard page ends the process: what the other tests are about",
    .enabled(if: GuardPages.areKnown, "needs MADV_GUARD_INSTALL (Linux 6.13)"),
    .enabled(if: ct_has_sanitizer() == 0, "the runtimes of sanitizers need the calls, and catch the signal"))
  func control() async {
    await #expect(processExitsWith: .signal(SIGSEGV)) {
      _ = ct_default(SIGSEGV)
      let memory = try ForeignMemory(.adoptedAnonymous, pages: GuardPages.count)
      GuardPages.install(memory.range)
      let space = try AddressSpace.forTests()
      let region = try space.adopt(memory.range)
      for descriptor in CInt(3)..<70_000 where GuardPages.isProcessMemory(descriptor) { close(descriptor) }
      check(ct_forbid_memory_copies(), is: 0)
      _ = try region.load(fromByteOffset: GuardPages.others[0] * 4096, as: UInt8.self)
      _ = try? region.load(fromByteOffset: GuardPages.pages[1] * 4096, as: UInt8.self)
    }
  }

  @Test(
    "K6: where a filter forbids the copies the kernel answers another way; K5: and where it came later",
    .enabled(if: GuardPages.areKnown, "needs MADV_GUARD_INSTALL (Linux 6.13)"),
    .enabled(if: ct_has_sanitizer() == 0, "the runtimes of sanitizers need the calls"), arguments: [false, true])
  func forbidden(_ later: Bool) async {
    await #expect(processExitsWith: .success) { [later = later as Bool] in
      ct_deadline(600)
      if later {
        try GuardScenario.run(.handlerThread, .adoptedAnonymous, .beforeSnapshot)
      }
      check(ct_forbid_memory_copies(), is: 0)
      for mechanism in Mechanisms.synchronous { try GuardScenario.run(mechanism, .adoptedAnonymous, .beforeSnapshot) }
      try GuardScenario.run(.handlerThread, .adoptedAnonymous, .afterSnapshot)
    }
  }
}
