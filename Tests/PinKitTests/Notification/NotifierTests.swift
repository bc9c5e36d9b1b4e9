import Synchronization
import Testing

@testable import PinKit

/// Who is told, when, and how often.
@Suite("Notifiers") struct NotifierTests {
  private static let mechanisms: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .mprotect]

  @Test(
    "N5/N9/N10: a break of sharing is start, invalidate, end, once, with the old frame until then", arguments: mechanisms)
  func breaks(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, mechanism)
    let states = Mutex<[Frame?]>([])
    let note: @Sendable () -> Void = { [clone] in
      let frames = clone.frames!
      let frame = unsafe Frame(number: frames.extent(of: 3).pointee.firstFrame + 3)
      states.withLock { $0.append(clone.table[3].contains(.cleared) ? nil : frame) }
    }
    let recorder = RecordingNotifier(
      { _ in
        note()
        return .done
      }, middle: { _ in note() }, end: { _ in note() })
    let subscription = try clone.subscribe(recorder, to: 2..<5)
    try clone.store(UInt64(99), toByteOffset: 3 * 4096)
    #expect(
      recorder.take() == [
        .start(.clear, 3..<4, blockable: false), .middle(.clear, 3..<4, blockable: false),
        .end(.clear, 3..<4, blockable: false),
      ])
    let seen = states.withLock { $0 }
    #expect(seen[0] != nil && seen[1] == nil && seen[2] != nil && seen[0] != seen[2])
    #expect(try region.load(fromByteOffset: 3 * 4096, as: UInt64.self) == 4)
    // Its own frame now, and open: nothing to tell. Nor of pages outside.
    try clone.store(UInt64(98), toByteOffset: 3 * 4096)
    try clone.store(UInt64(97), toByteOffset: 9 * 4096)
    #expect(recorder.take().isEmpty)
    subscription.remove()
    try clone.store(UInt64(96), toByteOffset: 4 * 4096)
    #expect(recorder.take().isEmpty)
    try space.close()
  }

  @Test("N6/N10: arming, collecting, snapshots, clones, protect and discard are one pair each", arguments: mechanisms)
  func operations(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 32)
    for page in 0..<32 { try region.store(UInt64(page), toByteOffset: page * 4096) }
    let recorder = RecordingNotifier()
    let subscription = try region.subscribe(recorder)
    let tracker = try region.trackWrites(mechanism)
    #expect(recorder.take(.start, .end) == [.start(.writeTracking, 0..<32), .end(.writeTracking, 0..<32)])
    // A page that is the first written: its right to write comes, nothing goes.
    for page in [4, 9] { try region.store(UInt64(7), toByteOffset: page * 4096) }
    #expect(recorder.take().isEmpty)
    #expect(try tracker.collect().runs == [4..<5, 9..<10])
    #expect(
      recorder.take() == [.start(.writeTracking, 4..<10), .middle(.writeTracking, 4..<10), .end(.writeTracking, 4..<10)])
    #expect(try tracker.collect().isEmpty)
    #expect(recorder.take().isEmpty)
    try region.store(UInt64(7), toByteOffset: 6 * 4096)
    let snapshot = try region.snapshot()
    #expect(recorder.take(.start, .end) == [.start(.writeTracking, 6..<7), .end(.writeTracking, 6..<7)])
    try region.store(UInt64(8), toByteOffset: 7 * 4096)
    snapshot.close()
    let clone = try region.clone()
    #expect(recorder.take(.start, .end) == [.start(.writeTracking, 7..<8), .end(.writeTracking, 7..<8)])
    try region.protect(3..<5)
    #expect(recorder.take(.start, .end) == [.start(.protectionRange, 3..<5), .end(.protectionRange, 3..<5)])
    try region.protect(3..<4, to: .readWrite)
    #expect(recorder.take(.start, .end) == [.start(.protectionPage, 3..<4), .end(.protectionPage, 3..<4)])
    try region.protect(3..<5, to: .readWrite)
    _ = recorder.take()
    try region.discard(10..<14)
    #expect(recorder.take(.start, .end) == [.start(.clear, 10..<14), .end(.clear, 10..<14)])
    try clone.unmap()
    #expect(recorder.take().isEmpty)
    try region.unmap()
    #expect(recorder.take() == [.start(.unmap, 0..<32), .middle(.unmap, 0..<32), .end(.unmap, 0..<32), .release])
    subscription.remove()
    try space.close()
  }

  @Test("N7: who implements invalidateRange alone is called for every change")
  func middleAlone() throws {
    final class Middle: MMUNotifier {
      let count = Shared()
      func invalidateRange(_ range: InvalidationRange) { count.value += 1 }
    }
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, .handlerThread)
    let middle = Middle()
    let subscription = try clone.subscribe(middle)
    try clone.store(UInt64(1), toByteOffset: 0)
    #expect(middle.count.value == 1)
    let tracker = try clone.trackWrites()
    let before = middle.count.value
    try clone.store(UInt64(1), toByteOffset: 5 * 4096)
    _ = try tracker.collect()
    #expect(middle.count.value == before + 2)
    try clone.protect(0..<2)
    try clone.protect(0..<2, to: .readWrite)
    try clone.discard(4..<5)
    #expect(middle.count.value >= before + 5)
    try clone.unmap()
    #expect(middle.count.value >= before + 6)
    subscription.remove()
    try region.unmap()
    try space.close()
  }

  @Test(
    "N4/N9: where one would block, the earlier get their end, nothing changes, and it comes again", arguments: mechanisms)
  func backsOff(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, mechanism)
    let first = RecordingNotifier()
    let refusals = Shared(3)
    let old = Mutex<[UInt64]>([])
    let second = RecordingNotifier { [clone] _ in
      let frames = clone.frames!
      old.withLock { unsafe $0.append(UInt64(frames.extent(of: 3).pointee.id)) }
      if refusals.value == 0 { return .done }
      refusals.value -= 1
      return .wouldBlock
    }
    let subscriptions = [try clone.subscribe(first), try clone.subscribe(second)]
    try clone.store(UInt64(99), toByteOffset: 3 * 4096)
    let started = first.calls.filter { $0.kind == .start }.count
    #expect(started == 4 && first.calls.filter { $0.kind == .end }.count == 4)
    #expect(second.calls.filter { $0.kind == .start }.count == 4 && second.calls.filter { $0.kind == .end }.count == 1)
    #expect(Set(old.withLock { $0 }).count == 1)
    #expect(try region.load(fromByteOffset: 3 * 4096, as: UInt64.self) == 4)
    _ = (first.take(), second.take())
    refusals.value = 2
    try clone.protect(0..<4)
    #expect(first.calls.filter { $0.kind == .start }.count == 3 && first.calls.filter { $0.kind == .end }.count == 3)
    for subscription in subscriptions { subscription.remove() }
    try space.close()
  }

  @Test("N4: where nobody may wait, nothing has changed")
  func doesNotWait() throws {
    let space = try AddressSpace.forTests()
    let (_, clone) = try sharedPair(space, .handlerThread)
    let isRefusing = Shared(1)
    let recorder = RecordingNotifier { _ in isRefusing.value == 1 ? .wouldBlock : .done }
    let subscription = try clone.subscribe(recorder)
    #expect(try clone.tryProtect(2..<4) == .wouldBlock)
    #expect(try clone.tryDiscard(2..<4) == .wouldBlock)
    #expect(recorder.take() == [.start(.protectionRange, 2..<4, blockable: false), .start(.clear, 2..<4, blockable: false)])
    #expect(try clone.load(fromByteOffset: 2 * 4096, as: UInt64.self) == 3)
    isRefusing.value = 0
    try clone.store(UInt64(5), toByteOffset: 2 * 4096)
    // The one who served the fault may still be at it.
    try untilDone { try clone.tryProtect(2..<4) }
    #expect(throws: PinError.self) { try clone.store(UInt64(5), toByteOffset: 2 * 4096) }
    try untilDone { try clone.tryProtect(2..<4, to: .readWrite) }
    try untilDone { try clone.tryDiscard(2..<4) }
    #expect(try clone.load(fromByteOffset: 2 * 4096, as: UInt64.self) == 0)
    subscription.remove()
    try space.close()
  }

  private func untilDone(_ body: () throws -> Attempt) throws {
    for _ in 0..<1_000_000 where try body() == .done { return }
    Issue.record("it would block for ever")
  }

  @Test("N2: what is marked dirty in the callback is in the collection that called it; afterwards it is an error")
  func marks() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 16)
    let kept = Mutex<InvalidationRange?>(nil)
    let isMarking = Shared()
    let recorder = RecordingNotifier { range in
      kept.withLock { $0 = range }
      if isMarking.value == 1 { try range.markDirty(6..<8) }
      return .done
    }
    let subscription = try region.subscribe(recorder)
    let tracker = try region.trackWrites(.handlerThread)
    for page in [2, 11] { try region.store(UInt8(1), toByteOffset: page * 4096) }
    isMarking.value = 1
    #expect(try tracker.collect().runs == [2..<3, 6..<8, 11..<12])
    isMarking.value = 0
    let range = try #require(kept.withLock { $0 })
    let error = #expect(throws: PinError.self) { try range.markDirty(6..<7) }
    #expect(error?.code == .tooLate)
    #expect(try tracker.collect().isEmpty)
    subscription.remove()
    try space.close()
  }

  @Test("N12: release comes once, when the space closes, before any frame is freed")
  func releases() throws {
    let space = try AddressSpace.forTests()
    let first = try space.map(.pool, pages: 4)
    try first.store(UInt64(77), toByteOffset: 0)
    final class Whole: MMUNotifier {
      let released = Shared()
      let resident = Shared()
      let starts = Shared()
      let pool: FramePool
      init(_ pool: FramePool) { self.pool = pool }
      func invalidateRangeStart(_ range: InvalidationRange) -> InvalidationResponse {
        starts.value += 1
        return .done
      }
      func release() {
        released.value += 1
        resident.value = pool.usage.residentBytes
      }
    }
    let whole = Whole(try space.framePool())
    let subscription = try space.subscribe(whole)
    // Also of what is made later.
    let later = try space.map(.pool, pages: 4)
    try later.protect(0..<1)
    #expect(whole.starts.value == 1)
    try later.unmap()
    #expect(whole.starts.value == 2 && whole.released.value == 0)
    try space.close()
    #expect(whole.released.value == 1 && whole.resident.value >= 4096)
    // What is unmapped after that is told to nobody.
    #expect(whole.starts.value == 2)
    subscription.remove()
    #expect(whole.released.value == 1)
  }

  @Test("A subscriber that throws stops the operation, with nothing changed")
  func throwing() throws {
    struct Refusal: Error {}
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let first = RecordingNotifier()
    let isBroken = Shared(1)
    let second = RecordingNotifier { _ in
      if isBroken.value == 1 { throw Refusal() }
      return .done
    }
    let subscriptions = [try region.subscribe(first), try region.subscribe(second)]
    let error = #expect(throws: PinError.self) { try region.protect(0..<2) }
    #expect(error?.code == .subscriberFailed)
    #expect(first.take(.start, .end) == [.start(.protectionRange, 0..<2), .end(.protectionRange, 0..<2)])
    try region.store(UInt8(1), toByteOffset: 0)
    isBroken.value = 0
    try region.protect(0..<2)
    isBroken.value = 1
    // Unmapping cannot fail.
    try region.unmap()
    #expect(second.calls.last == .release)
    for subscription in subscriptions { subscription.remove() }
    try space.close()
  }

  @Test("Inside a callback every call that could wait for it is refused")
  func refusedInside() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let codes = Mutex<[PinError.Code?]>([])
    let recorder = RecordingNotifier { [weak region] _ in
      guard let region else { return .done }
      let found = [
        errorCode { try region.store(UInt8(1), toByteOffset: 0) }, errorCode { try region.protect(0..<1) },
        errorCode { try region.discard(0..<1) }, errorCode { _ = try region.snapshot() },
        errorCode { _ = try region.clone() }, errorCode { _ = try region.trackWrites() },
        errorCode { _ = try region.pin(0..<1) }, errorCode { _ = try region.subscribe(RecordingNotifier()) },
        errorCode { try region.unmap() }, errorCode { _ = try region.load(fromByteOffset: 0, as: UInt8.self) },
        errorCode { try unsafe region.withUnsafeMutableBytes { _ in } },
      ]
      codes.withLock { $0 = found }
      return .done
    }
    let subscription = try region.subscribe(recorder)
    try region.protect(0..<1)
    let found = codes.withLock { $0 }
    #expect(found.count == 11 && found.allSatisfy { $0 == .wouldDeadlock }, "\(found)")
    subscription.remove()
    try space.close()
  }

  @Test("A subscriber may remove itself, and another, from inside a callback")
  func removesInside() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let subscriptions = Mutex<[Subscription]>([])
    let recorder = RecordingNotifier { _ in
      for subscription in subscriptions.withLock({ $0 }) { subscription.remove() }
      return .done
    }
    let other = RecordingNotifier()
    let made = [try region.subscribe(recorder), try region.subscribe(other)]
    subscriptions.withLock { $0 = made }
    try region.protect(0..<1)
    #expect(recorder.take() == [.start(.protectionPage, 0..<1)])
    #expect(other.take().isEmpty)
    try region.protect(0..<1, to: .readWrite)
    #expect(recorder.take().isEmpty)
    try space.close()
  }

  @Test("A subscriber can tell what it causes itself")
  func owners() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let owner = Shared()
    let owned = Mutex<[Bool]>([])
    let recorder = RecordingNotifier { range in
      owned.withLock { $0.append(range.isOwned(by: owner)) }
      return .done
    }
    let subscription = try region.subscribe(recorder)
    try region.protect(0..<1)
    try InvalidationRange.withOwner(owner) { try region.protect(0..<1, to: .readWrite) }
    try region.protect(0..<1)
    #expect(owned.withLock { $0 } == [false, true, false])
    subscription.remove()
    try space.close()
  }
}
