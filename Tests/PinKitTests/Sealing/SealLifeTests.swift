import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("Sealed pages in the life of a region") struct SealLifeTests {
  private func make(_ options: SealingOptions = .init(), pages: Int = 16) throws -> (AddressSpace, Region, RecordingSealer) {
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: pages)
    let sealer = RecordingSealer()
    try region.setSealer(sealer, options)
    for page in 0..<pages { try region.setByte(UInt8(truncatingIfNeeded: page + 1), page) }
    return (space, region, sealer)
  }

  @Test("A snapshot of sealed pages outlives its region, with what opens them") func outlives() throws {
    let (space, region, sealer) = try make()
    try region.seal(0..<4)
    let snapshot = try region.snapshot()
    let sealedByte = try region.rawByte(2)
    try region.unmap()
    #expect(try snapshot.read(2)[0] == sealedByte)
    let record = try #require(try snapshot.seal(of: 2))
    var page = try snapshot.read(2)
    try unsafe page.withUnsafeMutableBytes { bytes in
      try unsafe record.bytes.withUnsafeBytes { try unsafe sealer.open(bytes, identity: record.identity, record: $0) }
    }
    #expect(page[0] == 3)
    snapshot.close()
    #expect(errorCode { _ = try snapshot.seal(of: 2) } == .closed)
    try space.close()
  }

  @Test("A sealer that cannot be set leaves the region as it was") func refusedSealer() throws {
    var configuration = AddressSpace.Configuration()
    configuration.patience = 0.05
    let space = try AddressSpace(configuration: configuration)
    let region = try space.map(.pool, pages: 4)
    region.poke(7, 2)
    let subscription = try region.subscribe(RecordingNotifier { _ in .wouldBlock })
    #expect(errorCode { try region.setSealer(RecordingSealer()) } != nil)
    #expect(region.peek(2) == 7)
    region.poke(8, 2)
    subscription.remove()
    try region.setSealer(RecordingSealer())
    try region.seal(2..<3)
    #expect(region.peek(2) == 8)
    try space.close()
  }

  @Test("Pages without rights are snapshotted and read as they are, sealed or open") func unreadable() throws {
    let (space, region, _) = try make()
    try region.seal(3..<4)
    let sealedByte = try region.rawByte(3)
    try region.protect(3..<5, to: .none)
    let snapshot = try region.snapshot()
    #expect(try snapshot.read(3)[0] == sealedByte)
    #expect(try snapshot.read(4)[0] == 5)
    try region.protect(3..<5, to: .readWrite)
    #expect(region.peek(3) == 4)
    snapshot.close()
    try space.close()
  }

  @Test("A pin of a page that is not to be opened says so at once, and is no signal for others") func pinRefused() throws {
    let (space, region, _) = try make(SealingOptions(onAccess: .fail))
    try region.seal(3..<4)
    let begun = Kernel.now()
    #expect(errorCode { _ = try region.pin(3..<4, .write) } == .sealed)
    #expect(Kernel.now() - begun < 2_000_000_000)
    try region.makeAccessible(3..<4)
    let pin = try region.pin(3..<4, .write)
    pin.unpin()
    try space.close()
  }

  @Test("Rights that are given back to a poisoned page do not make its fault come for ever") func poisonedAndProtected()
    async
  {
    await #expect(processExitsWith: .success) { try Self.poisonedInChild() }
  }

  private static func poisonedInChild() throws {
    let space = try AddressSpace.forTriedFaults()
    let region = try space.map(.pool, pages: 8)
    try region.setSealer(RecordingSealer())
    region.poke(4, 3)
    try region.seal(0..<8)
    try region.tamper(3)
    let address = UInt64(region.addresses.start) + 3 * 4096
    check(ct_try_load(address), is: -SIGBUS)
    try region.protect(3..<4, to: .readOnly)
    check(ct_try_load(address), is: -SIGBUS)
    try region.protect(3..<4, to: .readWrite)
    check(ct_try_load(address), is: -SIGBUS)
    try region.discard(3..<4)
    check(ct_try_load(address), is: 0)
    check(ct_try_store(address, 5), is: 0)
    try space.close()
  }

  @Test("Reading a snapshot that has no room left opens nothing and waits for nobody") func fullSnapshot() throws {
    let (space, region, sealer) = try make()
    try region.seal(3..<5)
    var options = SnapshotOptions()
    options.captureLimit = 0
    let snapshot = try region.snapshot(options)
    let sealedByte = try region.rawByte(3)
    sealer.forget()
    #expect(try snapshot.read(3)[0] == sealedByte)
    #expect(sealer.steps == [])
    snapshot.close()
    try space.close()
  }

  @Test("What cannot be kept is refused: inheritance, images of sealed pages, a child's question") func refusals() throws {
    var configuration = AddressSpace.Configuration()
    configuration.inheritsAcrossFork = true
    let inheriting = try AddressSpace(configuration: configuration)
    let inherited = try inheriting.map(.pool, pages: 1)
    #expect(errorCode { try inherited.setSealer(RecordingSealer()) } == .unsupported)
    try inheriting.close()
    let (space, region, _) = try make()
    try region.seal(3..<4)
    let snapshot = try region.snapshot()
    #expect(errorCode { try snapshot.write(to: "/tmp/pinkit-never-written") } == .sealed)
    #expect(unsafe access("/tmp/pinkit-never-written", F_OK) != 0)
    snapshot.close()
    try space.close()
  }

  @Test("S2: discards and subscribers beside seals: no page is poisoned, and nobody keeps a translation of a sealed page")
  func beside() throws {
    let (space, region, sealer) = try make(pages: 8)
    let findings = Findings()
    let stop = Shared()
    let translated = Mutex<SecondaryMMU?>(nil)
    sealer.onSeal { page in
      if translated.withLock({ $0 })?.isTranslated(page) == true {
        findings.note("page \(page) was sealed under a translation")
      }
    }
    let others = [
      TestThread {
        while stop.value == 0 {
          try region.discard(2..<4)
          region.poke(9, 2)
        }
      },
      TestThread {
        while stop.value == 0 {
          let mirror = try SecondaryMMU(region)
          translated.withLock { $0 = mirror }
          for page in 0..<8 { try mirror.translate(page, for: .reading) }
          translated.withLock { $0 = nil }
          mirror.close()
        }
      },
    ]
    for _ in 0..<300 { do throws(PinError) { try region.seal(0..<8) } catch { #expect(error.code == .busy) } }
    stop.value = 1
    for thread in others { try thread.join() }
    #expect(findings.all == [])
    #expect(space.statistics.poisonedPages == 0)
    #expect(region.peek(5) == 6)
    try space.close()
  }

  @Test("The idle timer beside regions that come and go touches nothing that is not theirs") func idleAndUnmap() throws {
    let space = try AddressSpace()
    for round in 0..<12 {
      let region = try space.map(.pool, pages: 2048)
      try region.setSealer(RecordingSealer(), SealingOptions(idleSeconds: 0.05))
      for page in 0..<2048 { region.poke(UInt8(round + 1), page) }
      // Until the timer is in the middle of it.
      _ = spin(forAtMost: 1) { space.statistics.sealedPages > UInt64(round * 64) }
      try region.unmap()
      let next = try space.map(.anonymous, pages: 2048)
      for page in 0..<2048 { next.poke(77, page) }
      yieldForAWhile(milliseconds: 20)
      #expect((0..<2048).allSatisfy { next.peek($0) == 77 })
      try next.unmap()
    }
    try space.close()
  }
}
