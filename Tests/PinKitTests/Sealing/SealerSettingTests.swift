import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// `setSealer` beside calls that protect the region too. Either it comes first, and they know of it, or it is `.inUse`.
@Suite("Setting a sealer, raced") struct SealerSettingTests {
  private static let pages = 8

  private struct Copies {
    var snapshots: [Snapshot] = []
    var clones: [Region] = []
  }

  /// One region, and what several threads made of it at the same moment.
  private final class Round: Sendable {
    let space: AddressSpace
    let region: Region
    let sealer = RecordingSealer()
    let copies = Mutex(Copies())
    let findings = Findings()
    let isSet = Shared()
    let isOver = Shared()

    init(_ space: AddressSpace) throws {
      self.space = space
      region = try space.map(.pool, pages: SealerSettingTests.pages)
      for page in 0..<SealerSettingTests.pages { region.poke(UInt8(page + 1), page) }
    }

    func note(_ who: String, _ code: PinError.Code?, allowed: [PinError.Code]) {
      if let code, !allowed.contains(code) { findings.note("\(who): \(code)") }
    }

    func set() {
      let code = errorCode { try region.setSealer(sealer) }
      note("setSealer", code, allowed: [.inUse])
      if code != nil { return }
      isSet.value = 1
      for page in 0..<SealerSettingTests.pages {
        note("seal", errorCode { try region.seal(page..<page + 1) }, allowed: [.busy])
      }
    }

    func snapshot() {
      note(
        "snapshot", errorCode { try copies.withLock { copies in copies.snapshots.append(try region.snapshot()) } },
        allowed: [])
    }

    func clone() {
      note("clone", errorCode { try copies.withLock { copies in copies.clones.append(try region.clone()) } }, allowed: [])
    }

    func write() {
      while isOver.value == 0 { for page in 0..<SealerSettingTests.pages { region.poke(UInt8(page + 1), page) } }
    }

    /// A page of the region that is sealed now is in no snapshot in plain, and its frame is no clone's. What a clone got of it before, by a
    /// write that parted the two, is the clone's own, which it can seal.
    func judge() throws {
      let sealed = try (0..<SealerSettingTests.pages).filter { try region.isSealed($0) }
      let copies = copies.withLock { $0 }
      for snapshot in copies.snapshots {
        for page in 0..<SealerSettingTests.pages {
          var bytes = try snapshot.read(page)
          let record = try snapshot.seal(of: page)
          if let record {
            if bytes[0] == UInt8(page + 1) { findings.note("a snapshot has page \(page) in plain") }
            try unsafe bytes.withUnsafeMutableBytes { bytes in
              try unsafe record.bytes.withUnsafeBytes {
                try unsafe sealer.open(bytes, identity: record.identity, record: $0)
              }
            }
          } else if sealed.contains(page) {
            findings.note("page \(page) is sealed, and a snapshot has or is owed its plain bytes")
          }
          if bytes[0] != UInt8(page + 1) { findings.note("a snapshot has \(bytes[0]) in page \(page)") }
        }
        snapshot.close()
      }
      for clone in copies.clones {
        for page in sealed where try !clone.isSealed(page) && clone.frameState(page).frame == region.frameState(page).frame {
          findings.note("a clone has page \(page) in plain")
        }
        for page in 0..<SealerSettingTests.pages where clone.peek(page) != UInt8(page + 1) {
          findings.note("a clone has \(clone.peek(page)) in page \(page)")
        }
        let code = errorCode { try clone.makeAccessible(0..<1) }
        if code != (isSet.value == 1 ? nil : .unsupported) { findings.note("a clone's sealer: \(code as Any)") }
        try clone.unmap()
      }
      for page in 0..<SealerSettingTests.pages where region.peek(page) != UInt8(page + 1) {
        findings.note("the region has \(region.peek(page)) in page \(page)")
      }
      if isSet.value == 0, errorCode({ try region.seal(0..<1) }) != .unsupported { findings.note("half a sealer") }
      try region.unmap()
    }
  }

  @Test("S1, S5: a sealer set while others snapshot and clone: nobody has plain bytes of a sealed page, whoever comes first")
  func race() throws {
    let space = try AddressSpace()
    var (set, refused) = (0, 0)
    for index in 0..<400 {
      let round = try Round(space)
      let writer = TestThread { round.write() }
      try onThreads(3) { thread in
        // Each of them is late in some of the rounds.
        if index % 4 == thread { yieldForAWhile(milliseconds: 0) }
        switch thread {
        case 0: round.set()
        case 1: round.snapshot()
        default: round.clone()
        }
      }
      round.isOver.value = 1
      try writer.join()
      try round.judge()
      if round.isSet.value == 1 { set += 1 } else { refused += 1 }
      if !round.findings.isEmpty {
        #expect(round.findings.all == [], "round \(index)")
        break
      }
    }
    #expect(set + refused == 400)
    try space.close()
  }

  @Test("Two threads set a sealer: one of them does, the other is told that the region is in use") func twice() throws {
    let space = try AddressSpace()
    for _ in 0..<100 {
      let region = try space.map(.pool, pages: 4)
      let codes = Findings()
      try onThreads(2) { _ in
        codes.note(errorCode { try region.setSealer(RecordingSealer()) } == nil ? "set" : "in use")
      }
      #expect(codes.all.sorted() == ["in use", "set"])
      region.poke(7, 1)
      try region.seal(0..<4)
      #expect(region.peek(1) == 7)
      try region.unmap()
    }
    try space.close()
  }

  /// Starts `other` while a sealer is being set, and lets it wait for that.
  private static func during(_ region: Region, _ sealer: RecordingSealer, _ other: @escaping @Sendable () throws -> Void)
    throws
  {
    let waiter = Mutex<TestThread?>(nil)
    TestHooks.set(.exclusiveHeld) { _ in
      let thread = waiter.withLock { waiter -> TestThread? in
        guard waiter == nil else { return nil }
        waiter = TestThread { try other() }
        return waiter
      }
      if let thread { check(spin { thread.isAsleep || thread.hasEnded }, "it waits") }
    }
    try region.setSealer(sealer)
    TestHooks.set(.exclusiveHeld, nil)
    try waiter.withLock { $0 }?.join()
  }

  @Test("S5: a clone that began before a sealer was set has the sealer too") func cloneMeanwhile() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace()
      let region = try space.map(.pool, pages: 8)
      for page in 0..<8 { region.poke(UInt8(page + 1), page) }
      let clones = Mutex<[Region]>([])
      try Self.during(region, RecordingSealer()) {
        let clone = try region.clone()
        clones.withLock { $0.append(clone) }
      }
      let clone = clones.withLock { $0[0] }
      check(errorCode { try region.seal(2..<3) }, is: .busy)
      clone.poke(9, 2)
      try region.seal(2..<3)
      try clone.seal(2..<3)
      try check(clone.isSealed(2), "the clone's own")
      check(clone.peek(2), is: 9)
      check(region.peek(2), is: 3)
      check(clone.peek(4), is: 5)
      try clone.unmap()
      try space.close()
    }
  }

  @Test("S5: a snapshot that began before a sealer was set keeps pages from being sealed") func snapshotMeanwhile() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace()
      let region = try space.map(.pool, pages: 8)
      region.poke(3, 2)
      let snapshots = Mutex<[Snapshot]>([])
      try Self.during(region, RecordingSealer()) {
        let snapshot = try region.snapshot()
        snapshots.withLock { $0.append(snapshot) }
      }
      check(errorCode { try region.seal(2..<3) }, is: .busy)
      try check(snapshots.withLock { $0[0] }.read(2)[0], is: 3)
      snapshots.withLock { $0 = [] }
      try region.seal(2..<3)
      try space.close()
    }
  }

  @Test("A sealer that the kernel refuses to set leaves nobody with half of it") func refused() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace()
      let region = try space.map(.pool, pages: 8)
      for page in 0..<8 { region.poke(UInt8(page + 1), page) }
      let isOver = Shared()
      // A signal handler that looks at the region's seals, again and again.
      _ = ct_handle(SIGSEGV, CInt(ct_siginfo))
      try region.protect(7..<8, to: .none)
      let toucher = TestThread {
        while isOver.value == 0 { check(ct_try_load(UInt64(region.addresses.start) + 7 * 4096), is: -SIGSEGV) }
      }
      for errno in [Errno.noMemory, .invalidArgument] {
        for _ in 0..<50 {
          Injection.arm(.writeProtect, errno)
          check(errorCode { try region.setSealer(RecordingSealer()) } != nil, "set")
          check(Injection.count, is: 1)
          Injection.disarm()
          check(errorCode { try region.seal(0..<1) }, is: .unsupported)
          let snapshot = try region.snapshot()
          region.poke(2, 1)
          try check(snapshot.read(1)[0], is: 2)
          snapshot.close()
          try region.endSnapshots()
        }
      }
      isOver.value = 1
      try toucher.join()
      try region.protect(7..<8, to: .readWrite)
      try region.setSealer(RecordingSealer())
      try region.seal(0..<8)
      for page in 0..<8 { check(region.peek(page), is: UInt8(page + 1)) }
      try space.close()
    }
  }

  @Test("S1: a discard that began before the sealer was set drops no sealed bytes") func discardMeanwhile() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace()
      let region = try space.map(.pool, pages: 8)
      let sealing = Mutex<TestThread?>(nil)
      TestHooks.set(.dropping) { _ in
        let thread = TestThread {
          try region.setSealer(RecordingSealer())
          region.poke(7, 2)
          try region.seal(2..<3)
        }
        sealing.withLock { $0 = thread }
        check(spin { thread.isAsleep || thread.hasEnded }, "it waits")
        yieldForAWhile(milliseconds: 30)
      }
      try region.discard(2..<3)
      TestHooks.set(.dropping, nil)
      try sealing.withLock { $0 }!.join()
      try check(region.byte(2), is: 7)
      try space.close()
    }
  }
}
