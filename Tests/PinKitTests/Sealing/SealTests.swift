import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

@Suite("Sealed pages of a region") struct SealTests {
  private func make(_ pages: Int = 16, _ options: SealingOptions = .init()) throws -> (AddressSpace, Region, RecordingSealer)
  {
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: pages)
    let sealer = RecordingSealer()
    try region.setSealer(sealer, options)
    for page in 0..<pages { try region.setByte(UInt8(truncatingIfNeeded: page + 1), page) }
    return (space, region, sealer)
  }

  @Test("S4: a sealed page has other bytes in the same frame, and touching it opens it, and it alone") func opensOnTouch()
    throws
  {
    let (space, region, sealer) = try make()
    let frames = try (0..<16).map { try region.frameState($0).frame }
    try region.seal(0..<16)
    #expect(try (0..<16).allSatisfy { try region.isSealed($0) && region.frameState($0).isSealed })
    #expect(try (0..<16).allSatisfy { try region.rawByte($0) != UInt8($0 + 1) })
    #expect(try (0..<16).map { try region.frameState($0).frame } == frames)
    #expect(try region.frameState(3).counts.references == 1)
    sealer.forget()
    #expect(region.peek(3) == 4)
    #expect(sealer.steps == [.open(3)])
    #expect(try (0..<16).filter { try !region.isSealed($0) } == [3])
    region.poke(99, 5)
    #expect(region.peek(5) == 99)
    #expect(sealer.steps == [.open(3), .open(5)])
    try region.seal(5..<6)
    #expect(try region.isSealed(5) && region.rawByte(5) != 99)
    try region.makeAccessible(0..<16)
    #expect(try (0..<16).map { try region.byte($0) } == [1, 2, 3, 4, 5, 99] + (7...16).map { UInt8($0) })
    #expect(space.statistics.sealedPages == 17 && space.statistics.openedSeals == 17)
    try space.close()
  }

  @Test("Pages that are opened by name are mapped, up to one that never opens, and can be sealed again") func opensRanges()
    throws
  {
    let (space, region, sealer) = try make(200)
    try region.seal(0..<200)
    try region.tamper(150)
    #expect(errorCode { try region.makeAccessible(3..<200) } == .tampered)
    #expect(try (0..<200).filter { try !region.isSealed($0) } == Array(3..<150))
    let faults = space.statistics.minorFaults
    #expect((3..<150).allSatisfy { region.peek($0) == UInt8(truncatingIfNeeded: $0 + 1) })
    #expect(space.statistics.minorFaults == faults, "reading takes no fault")
    region.poke(77, 100)
    sealer.forget()
    try region.seal(3..<150)
    #expect(sealer.steps.count == 147)
    #expect(region.peek(100) == 77 && region.peek(149) == 150)
    #expect(sealer.steps.suffix(2) == [.open(100), .open(149)], "what was mapped is not any more")
    try space.close()
  }

  /// Ways to a page's bytes, each of which has to open it. Each reads the first byte of page 3.
  private static let ways: [(String, @Sendable (Region) throws -> UInt8)] = [
    ("a pointer", { $0.peek(3) }),
    ("withUnsafeMutableBytes", { region in try unsafe region.withUnsafeMutableBytes { unsafe $0[3 * 4096] } }),
    ("load", { try $0.byte(3) }),
    (
      "copy",
      { region in
        var byte: UInt8 = 0
        try unsafe withUnsafeMutableBytes(of: &byte) { try unsafe region.copy(fromByteOffset: 3 * 4096, into: $0) }
        return byte
      }
    ),
    (
      "touch",
      { region in
        try region.touch(3)
        return try region.rawByte(3)
      }
    ),
    ("loadAcquiring", { UInt8(truncatingIfNeeded: try $0.loadAcquiring(fromByteOffset: 3 * 4096)) }),
    (
      "a pin for reading",
      { region in
        let pin = try region.pin(3..<4)
        return unsafe pin.withUnsafeBytes { unsafe $0[0] }
      }
    ),
    (
      "a pin for writing",
      { region in
        let pin = try region.pin(3..<4, .write)
        return unsafe pin.withUnsafeBytes { unsafe $0[0] }
      }
    ),
    (
      "a lookup",
      { region in
        let reference = try region.lookUp(3)
        var page = [UInt8](repeating: 0, count: 4096)
        try unsafe page.withUnsafeMutableBytes { try unsafe reference.copy(into: $0) }
        return page[0]
      }
    ),
    (
      "a secondary MMU",
      { region in
        let mirror = try SecondaryMMU(region)
        defer { mirror.close() }
        return try unsafe mirror.withBytes(of: 3, for: .reading) { unsafe $0[0] }
      }
    ),
    (
      "writing to a file",
      { region in
        let file = try TemporaryBytes()
        defer { file.close() }
        _ = try region.write(to: file.descriptor, offset: 0, from: 3 * 4096..<4 * 4096)
        return try file.firstByte()
      }
    ),
    (
      "a fixed buffer",
      { region in
        let file = try TemporaryBytes()
        defer { file.close() }
        var buffers = try FixedBuffers(region, [3..<4])
        _ = try buffers.queueWrite(to: file.descriptor, at: 0, from: 0, bytes: 0..<4096)
        try buffers.submit(waitingFor: 1)
        _ = buffers.nextCompletion()
        try buffers.close()
        return try file.firstByte()
      }
    ),
    (
      "a direct mapping",
      { region in
        let mapping = try DirectMapping(region, pages: 3..<4)
        defer { mapping.close() }
        return try unsafe mapping.withBytes { unsafe $0[0] }
      }
    ),
    (
      "a system call on its pointer",
      { region in
        let file = try TemporaryBytes()
        defer { file.close() }
        let start = region.addresses.start + 3 * 4096
        let count = unsafe pwrite(file.descriptor.rawValue, UnsafeRawPointer(bitPattern: start)!, 4096, 0)
        guard count == 4096 else { return 0 }
        return try file.firstByte()
      }
    ),
    (
      "a clone's own copy",
      { region in
        let clone = try region.clone()
        defer { try? clone.unmap() }
        return clone.peek(3)
      }
    ),
  ]

  @Test("S1: every way to the bytes of a page goes through the one funnel that opens it", arguments: ways.indices)
  func everyWay(index: Int) throws {
    let (space, region, sealer) = try make()
    let (name, read) = Self.ways[index]
    try region.seal(0..<16)
    sealer.forget()
    #expect(try read(region) == 4, "\(name)")
    #expect(sealer.steps.contains(.open(3)), "\(name)")
    #expect(!sealer.steps.contains(.open(4)) && !sealer.steps.contains(.open(2)), "\(name) opens nothing else")
    try space.close()
  }

  @Test(
    "S1: where touching is to fail, every way says so, until the page is made accessible by name", arguments: ways.indices)
  func everyWayFails(index: Int) throws {
    let (name, read) = Self.ways[index]
    // A pointer gets a signal: tested in a process of its own.
    if ["a pointer", "withUnsafeMutableBytes", "a system call on its pointer", "a clone's own copy"].contains(name) {
      return
    }
    let (space, region, sealer) = try make(16, SealingOptions(onAccess: .fail))
    try region.seal(0..<16)
    sealer.forget()
    #expect(errorCode { _ = try read(region) } == .sealed, "\(name)")
    #expect(sealer.steps == [], "\(name)")
    try region.makeAccessible(3..<4)
    #expect(try read(region) == 4, "\(name)")
    try space.close()
  }

  @Test("S2, S5: a page that somebody uses is busy, and nothing changes") func busy() throws {
    let (space, region, sealer) = try make()
    func expectBusy(_ who: String) {
      sealer.forget()
      #expect(errorCode { try region.seal(2..<6) } == .busy, "\(who)")
      #expect(sealer.steps == [], "\(who): all or none")
      #expect((2..<6).allSatisfy { (try? region.isSealed($0)) == false }, "\(who)")
      #expect((try? region.frameState(2).counts.isFrozen) == false, "\(who)")
      #expect(region.peek(4) == 5, "\(who)")
    }
    do {
      let pin = try region.pin(4..<5)
      expectBusy("a pin")
      pin.unpin()
    }
    do {
      let pin = try region.pin(4..<5, [.write, .longTerm])
      expectBusy("a long-term pin")
      pin.unpin()
    }
    do {
      let reference = try region.lookUp(4)
      expectBusy("a lookup")
      // On a thread that holds nothing.
      try reference.withPageLock {
        try TestThread { if errorCode({ try region.seal(4..<5) }) != .busy { throw PinError.broken } }.join()
      }
      _ = consume reference
    }
    let clone = try region.clone()
    expectBusy("a clone that shares it")
    try clone.unmap()
    let snapshot = try region.snapshot()
    expectBusy("a snapshot that has its plain bytes")
    snapshot.close()
    try region.seal(2..<6)
    #expect(try (2..<6).allSatisfy { try region.isSealed($0) })
    try space.close()
  }

  @Test(
    "S3: a lookup beside a seal spins: it never sees the page as free, and gets no reference before the page can be opened")
  func lookupsSpin() throws {
    let (space, region, sealer) = try make(5000)
    let page = 4099
    let gate = Shared()
    let inside = Shared()
    sealer.onSeal { sealed in
      if sealed != page { return }
      inside.value = 1
      while gate.value == 0 { Kernel.pause(nanoseconds: 20_000) }
    }
    let sealing = TestThread { try region.seal(page..<page + 1) }
    #expect(spin { inside.value == 1 })
    #expect(try region.frameState(page).counts.isFrozen)
    let found = Shared()
    let lookup = TestThread {
      let reference = try region.lookUp(page)
      found.value = reference.state.isSealed ? 2 : 1
    }
    yieldForAWhile(milliseconds: 30)
    #expect(found.value == 0 && !lookup.hasEnded, "no reference, and no error")
    gate.value = 1
    try sealing.join()
    try lookup.join()
    #expect(found.value == 1, "and then the page is open")
    try space.close()
  }

  @Test("S2: devices give their translations up before the page is sealed") func invalidates() throws {
    let (space, region, sealer) = try make()
    let order = Findings()
    let notifier = RecordingNotifier { range in
      if range.event == .seal, (try? region.isSealed(3)) != false { order.note("told too late") }
      return .done
    }
    let subscription = try region.subscribe(notifier)
    let mirror = try SecondaryMMU(region)
    try mirror.translate(3, for: .writing)
    sealer.onSeal { page in if mirror.isTranslated(page) { order.note("translated while it was sealed") } }
    try region.seal(3..<4)
    #expect(order.all == [])
    #expect(notifier.calls.last == .end(.seal, 3..<4))
    #expect(notifier.calls.filter { $0.event == .seal }.map(\.kind) == [.start, .middle, .end])
    mirror.close()
    subscription.remove()
    try space.close()
  }

  @Test("A tampered page never opens: a typed error, and a poisoned page until it is discarded") func tampered() throws {
    let (space, region, _) = try make()
    try region.seal(0..<16)
    try region.tamper(7, at: 1000)
    #expect(errorCode { try region.makeAccessible(7..<8) } == .tampered)
    try region.tamper(7, at: 1000)
    #expect(errorCode { try region.makeAccessible(7..<8) } == .tampered, "also when it is put back")
    #expect(errorCode { _ = try region.byte(7) } == .tampered)
    #expect(errorCode { _ = try region.pin(7..<8) } == .tampered)
    #expect(errorCode { _ = try region.lookUp(7) } == .tampered)
    #expect(region.peek(6) == 7, "its neighbours open")
    #expect(space.statistics.poisonedPages == 1)
    try region.discard(7..<8)
    #expect(region.peek(7) == 0)
    region.poke(5, 7)
    try region.seal(7..<8)
    #expect(region.peek(7) == 5)
    try space.close()
  }

  @Test("A pointer at a page that is not to be opened, or was tampered with, gets SIGBUS, and a system call EFAULT")
  func signals() async {
    await #expect(processExitsWith: .success) { try Self.signalsInChild() }
  }

  private static func signalsInChild() throws {
    let space = try AddressSpace.forTriedFaults()
    let region = try space.map(.pool, pages: 8)
    try region.setSealer(RecordingSealer(), SealingOptions(onAccess: .fail))
    for page in 0..<8 { region.poke(UInt8(page + 1), page) }
    try region.seal(0..<8)
    let address = UInt64(region.addresses.start)
    for _ in 0..<3 {
      check(ct_try_load(address + 3 * 4096), is: -SIGBUS)
      check(ct_try_store(address + 4 * 4096, 1), is: SIGBUS)
    }
    checkSystemCallFails(at: address + 5 * 4096)
    try region.makeAccessible(3..<6)
    check(ct_try_load(address + 3 * 4096), is: 4)
    check(ct_try_store(address + 4 * 4096, 50), is: 0)
    check(ct_try_load(address + 5 * 4096), is: 6)
    try region.tamper(6)
    check(errorCode { try region.makeAccessible(6..<7) } == .tampered, "tampered")
    check(ct_try_load(address + 6 * 4096), is: -SIGBUS)
    check(ct_try_load(address + 4 * 4096), is: 50)
    try space.close()
  }

  @Test("Pages that nobody touches are sealed again, those that are in use are not") func idle() throws {
    let (space, region, _) = try make(8, SealingOptions(idleSeconds: 0.5))
    try region.seal(0..<8)
    try region.makeAccessible(0..<2)
    let stop = Shared()
    let user = TestThread { while stop.value == 0 { region.poke(region.peek(1), 1) } }
    let pin = try region.pin(5..<6)
    #expect(spin { (try? region.isSealed(0)) == true }, "an idle page is sealed")
    #expect(try !region.isSealed(5), "a pinned one is not")
    yieldForAWhile(milliseconds: 700)
    #expect(space.statistics.openedSeals <= 6, "one in use is not sealed again and again")
    stop.value = 1
    try user.join()
    pin.unpin()
    #expect(spin { (try? region.isSealed(1)) == true && (try? region.isSealed(5)) == true })
    #expect(region.peek(1) == 2 && region.peek(5) == 6)
    try space.close()
  }

  @Test("Snapshots and clones of sealed pages have sealed bytes, which their own seals open") func copies() throws {
    let (space, region, sealer) = try make()
    try region.seal(0..<8)
    let snapshot = try region.snapshot()
    let sealedByte = try region.rawByte(3)
    region.poke(77, 3)
    try region.seal(3..<4)
    sealer.forget()
    #expect(try snapshot.read(3)[0] == sealedByte, "what was there at its moment")
    #expect(try snapshot.read(2)[0] == region.rawByte(2))
    #expect(sealer.steps == [], "reading a snapshot opens nothing")
    let record = try #require(try snapshot.seal(of: 3))
    #expect(try snapshot.seal(of: 9) == nil)
    var page = try snapshot.read(3)
    try unsafe page.withUnsafeMutableBytes { bytes in
      try unsafe record.bytes.withUnsafeBytes { try unsafe sealer.open(bytes, identity: record.identity, record: $0) }
    }
    #expect(page[0] == 4)
    let clone = try region.clone()
    #expect(try clone.isSealed(2) && clone.rawByte(2) == region.rawByte(2))
    sealer.forget()
    #expect(clone.peek(2) == 3)
    #expect(sealer.steps == [.open(2)])
    #expect(try region.isSealed(2), "the parent's is its own")
    #expect(clone.peek(12) == 13)
    clone.poke(9, 2)
    try clone.seal(2..<3)
    #expect(clone.peek(2) == 9 && region.peek(2) == 3)
    snapshot.close()
    try clone.unmap()
    try space.close()
  }

  @Test("Bad arguments and a sealer without a key are typed errors, and nothing is lost") func refusals() throws {
    let (space, region, sealer) = try make()
    #expect(errorCode { try region.setSealer(sealer) } == .inUse)
    #expect(errorCode { try region.seal(0..<17) } == .outOfBounds)
    let plain = try space.map(.pool, pages: 1)
    #expect(errorCode { try plain.seal(0..<1) } == .unsupported)
    #expect(errorCode { try plain.makeAccessible(0..<1) } == .unsupported)
    #expect(errorCode { try plain.setSealer(sealer, SealingOptions(idleSeconds: 0)) } == .invalidArgument)
    let tracked = try space.map(.pool, pages: 1)
    let tracker = try tracked.trackWrites()
    #expect(errorCode { try tracked.setSealer(sealer) } == .inUse)
    try tracker.stop()
    let anonymous = try space.map(.anonymous, pages: 1)
    #expect(errorCode { try anonymous.setSealer(sealer) } == .unsupported)
    sealer.breakDown(true)
    #expect(errorCode { try region.seal(0..<4) } == .keyGone)
    #expect(region.peek(2) == 3)
    sealer.breakDown(false)
    try region.seal(0..<4)
    sealer.breakDown(true)
    #expect(errorCode { _ = try region.byte(2) } == .keyGone)
    sealer.breakDown(false)
    #expect(try region.byte(2) == 3, "it may come back")
    try region.unmap()
    #expect(errorCode { try region.seal(0..<1) } == .unmapped)
    try space.close()
  }
}

/// A file for a page.
private struct TemporaryBytes {
  private let file: Shared
  var descriptor: FileDescriptor { FileDescriptor(rawValue: CInt(file.value)) }
  init() throws {
    var name = Array("/tmp/pinkit-seal-XXXXXX".utf8CString)
    file = Shared(Int(unsafe mkstemp(&name)))
    unsafe unlink(name)
  }
  func close() { try? descriptor.close() }
  func firstByte() throws -> UInt8 {
    var byte: UInt8 = 0
    _ = try unsafe withUnsafeMutableBytes(of: &byte) { try unsafe descriptor.read(fromAbsoluteOffset: 0, into: $0) }
    return byte
  }
}
