import CTestSupport
import Foundation
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// What goes on while a region is protected for a snapshot, a slice after the other. Hooks are the process's: these tests run one after the
/// other, and look only at slices that end where no other suite's do.
@Suite("Snapshots armed in slices", .serialized) struct ArmingSliceTests {
  private static let pageCount = 9217
  private static let slice = 977
  /// Behind the fifth slice of a region that is protected for the first time.
  private static let middle = 5 * slice
  private static let mechanisms: [WriteTracking.Mechanism] = [.handlerThread, .inPlace]

  private func with(_ body: (Region) throws -> Void) throws {
    let space = try AddressSpace.forTests(
      patience: AddressSpace.Configuration().patience,
      armingSlice: ArmingSlice(pages: Self.slice, mostPages: Self.slice, runs: 100))
    let region = try space.map(.anonymous(hugePages: .never), pages: Self.pageCount)
    try region.write(version: 1, to: 0..<Self.pageCount)
    defer { TestHooks.set(.armedSlice, nil) }
    try body(region)
    try space.close()
  }

  /// The same with a tracker, and an open snapshot since which every third page was written.
  private func withWatched(
    _ mechanism: WriteTracking.Mechanism, _ body: (Region, WriteTracker, Snapshot, _ written: [Int]) throws -> Void
  ) throws {
    try with { region in
      let tracker = try region.trackWrites(mechanism)
      let before = try region.snapshot()
      let written = Array(stride(from: 0, to: Self.pageCount, by: 3))
      try region.write(version: 2, to: written)
      try body(region, tracker, before, written)
      #expect(try before.pages { _ in 1 } == [])
      before.close()
      try tracker.stop()
    }
  }

  private static func set(_ pages: [Int]) -> DirtySet { DirtySet(pageCount: pageCount, runs: pages.map { $0..<$0 + 1 }) }

  /// Runs `body` on another thread behind the slice that ends at `page`, and waits for it.
  private func behind(_ page: Int, _ body: @escaping @Sendable () throws -> Void) -> Shared {
    let count = Shared()
    TestHooks.set(.armedSlice) { end in
      guard end == page, count.add() == 1 else { return }
      do { try TestThread(body).join() } catch { Issue.record("\(error)") }
    }
    return count
  }

  @Test(
    "W1, W6: writers go on between slices, and a snapshot has what they wrote until its moment", arguments: mechanisms)
  func writersGoOn(_ mechanism: WriteTracking.Mechanism) throws {
    try with { region in
      // Some protected, the others not yet.
      let written = [0, 1, 500, Self.middle - 1, Self.middle, Self.middle + 700, Self.pageCount - 1]
      let count = behind(Self.middle) { try region.write(version: 2, to: written) }
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      #expect(count.value == 1)
      try region.write(version: 3, to: written + [7, Self.middle + 7])
      #expect(try snapshot.pages { written.contains($0) ? 2 : 1 } == [])
      #expect(snapshot.pause > 0)
      snapshot.close()
    }
  }

  @Test("W5, W6: the same where the region is watched already, and its tracker has every page once", arguments: mechanisms)
  func writersGoOnBesideTrackers(_ mechanism: WriteTracking.Mechanism) throws {
    try withWatched(mechanism) { region, tracker, before, early in
      let late = [0, 1, 3, 500, 4001, Self.pageCount - 2, Self.pageCount - 1]
      // Behind the last slice; after that the moment comes.
      let count = behind(Self.pageCount) { try region.write(version: 3, to: late) }
      let snapshot = try region.snapshot()
      #expect(count.value >= 1)
      let all = Self.set(early + late)
      #expect(try tracker.collect() == all)
      #expect(try snapshot.changes(since: before) == all)
      try region.write(version: 4, to: [3, 4])
      #expect(try tracker.collect().runs == [3..<5])
      #expect(try snapshot.pages { page in late.contains(page) ? 3 : page % 3 == 0 ? 2 : 1 } == [])
      snapshot.close()
    }
  }

  @Test("W5: what slices took is not lost when the moment fails", arguments: mechanisms)
  func nothingIsLost(_ mechanism: WriteTracking.Mechanism) throws {
    try withWatched(mechanism) { region, tracker, before, written in
      let pin = try region.pin(8..<9, .write)
      #expect(code { _ = try region.snapshot(.init(captureLimit: 0)) } == .limitReached)
      pin.unpin()
      let snapshot = try region.snapshot()
      let all = Self.set(written + [8])
      #expect(try tracker.collect() == all)
      #expect(try snapshot.changes(since: before) == all)
      snapshot.close()
    }
  }

  @Test("W6: what is opened while a region is protected for the first time is not all left for the moment")
  func againBeforeTheFirst() throws {
    try with { region in
      let thread = Kernel.threadID
      let (slices, written) = (Shared(), Array(stride(from: 0, to: Self.middle, by: 3)))
      TestHooks.set(.armedSlice) { end in
        guard Kernel.threadID == thread else { return }
        slices.add()
        guard end == Self.middle else { return }
        do { try TestThread { try region.write(version: 2, to: written) }.join() } catch { Issue.record("\(error)") }
      }
      let snapshot = try region.snapshot(.init(mechanism: .inPlace))
      #expect(slices.value > (Self.pageCount + Self.slice - 1) / Self.slice)
      #expect(try snapshot.pages { $0 < Self.middle && $0 % 3 == 0 ? 2 : 1 } == [])
      snapshot.close()
    }
  }

  @Test(
    "W5: what other code drops while a region changes over from tracking by the kernel is in its tracker's set",
    .enabled(if: Mechanisms.all.contains(.asynchronous), "needs WP_ASYNC"))
  func droppedWhileChangingOver() throws {
    try with { region in
      let tracker = try region.trackWrites(.asynchronous)
      let address = region.addresses.start + 100 * 4096
      let count = behind(Self.middle) {
        check(unsafe madvise(UnsafeMutableRawPointer(bitPattern: address), 4096, MADV_DONTNEED), is: 0)
        // The kernel says so to a handler thread, which notes it.
        check(spin { region.table.discarded.contains(100) }, "the removal is not noted")
      }
      let snapshot = try region.snapshot(.init(mechanism: .handlerThread))
      #expect(count.value == 1)
      #expect(try tracker.collect().contains(100))
      #expect(try snapshot.read(100) == [UInt8](repeating: 0, count: 4096))
      snapshot.close()
      try tracker.stop()
    }
  }

  @Test(
    "P8, P9, P6: pages that are pinned for writing stay open between slices, and one that is unpinned there is protected at the moment",
    arguments: mechanisms, [false, true])
  func pinsStayOpen(_ mechanism: WriteTracking.Mechanism, isWatched: Bool) throws {
    try with { region in
      let path = "\(Capabilities.temporaryDirectory)/pinkit-slice-\(UInt64.random(in: .min ... .max))"
      try RawFile.write([UInt8](repeating: 9, count: 4096), path)
      defer { try? FileManager.default.removeItem(atPath: path) }
      let tracker = isWatched ? try region.trackWrites(mechanism) : nil
      if isWatched { try region.write(version: 1, to: stride(from: 0, to: Self.pageCount, by: 3)) }
      let staying = try region.pin(5..<6, .write)
      let leaving = KeptPin(try region.pin(6..<7, .write))
      let address = region.addresses.start
      let count = behind(isWatched ? Self.pageCount : Self.middle) {
        let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
        defer { close(descriptor) }
        // The kernel's own writes: in place it could not resolve a fault of them.
        let read = unsafe pread(descriptor, UnsafeMutableRawPointer(bitPattern: address + 5 * 4096), 4096, 0)
        check(read, is: 4096)
        try region.write(version: 2, to: [6])
        leaving.drop()
      }
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      #expect(count.value >= 1)
      try region.write(version: 3, to: [5, 6])
      #expect(try snapshot.read(5) == [UInt8](repeating: 9, count: 4096))
      #expect(try snapshot.pages { $0 == 6 ? 2 : 1 } == [5])
      staying.unpin()
      snapshot.close()
      try tracker?.stop()
    }
  }

  @Test("P9: a page that was opened and let go of before its slice is not taken for open behind it")
  func openedBeforeItsSlice() throws {
    try with { region in
      let page = Self.middle + 100
      let zeros = unsafe open("/dev/zero", O_RDONLY | O_CLOEXEC)
      defer { close(zeros) }
      let address = region.addresses.start + UInt(page) * 4096
      let (early, late) = (Shared(), Shared())
      TestHooks.set(.armedSlice) { end in
        do {
          if end == Self.middle, early.add() == 1 {
            try TestThread { try region.pin(page..<page + 1, .write).unpin() }.join()
          }
          guard end == Self.middle + Self.slice, late.add() == 1 else { return }
          try TestThread {
            let pin = try region.pin(page..<page + 1, .write)
            // In place a fault of the kernel's own write cannot be resolved.
            check(unsafe read(zeros, UnsafeMutableRawPointer(bitPattern: address), 4096), is: 4096)
            pin.unpin()
          }.join()
        } catch { Issue.record("\(error)") }
      }
      let snapshot = try region.snapshot(.init(mechanism: .inPlace))
      #expect(early.value == 1 && late.value == 1)
      try region.write(version: 3, to: [page])
      #expect(try snapshot.read(page) == [UInt8](repeating: 0, count: 4096))
      snapshot.close()
    }
  }

  @Test("W5: a slice that is tried again forgets nothing, whatever was opened meanwhile") func triedAgain() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(600)
      let space = try AddressSpace.forTests(
        patience: 600, armingSlice: ArmingSlice(pages: Self.slice, mostPages: Self.slice, runs: 100))
      let region = try space.map(.anonymous(hugePages: .never), pages: Self.pageCount)
      try region.write(version: 1, to: 0..<Self.pageCount)
      let tracker = try region.trackWrites(.inPlace)
      let written = Array(stride(from: 0, to: Self.pageCount, by: 100)) + Array(stride(from: 9001, to: 9200, by: 2))
      try region.write(version: 2, to: written)
      let writer = Mutex<TestThread?>(nil)
      TestHooks.set(.protecting) { page in
        guard page == 200, writer.withLock({ $0 == nil }) else { return }
        // The kernel asks to try again, and meanwhile a page before is opened.
        Injection.arm(.writeProtect, .resourceTemporarilyUnavailable)
        let thread = TestThread { try region.write(version: 3, to: [50]) }
        writer.withLock { $0 = thread }
        check(spin { thread.isAsleep || thread.hasEnded }, "the writer does not wait")
      }
      let snapshot = try region.snapshot()
      TestHooks.set(.protecting, nil)
      check(Injection.count, is: 1)
      Injection.disarm()
      try writer.withLock { $0 }?.join()
      let all = Self.set(written + [50])
      try check(tracker.collect(), is: all)
      snapshot.close()
      try tracker.stop()
      try space.close()
    }
  }

  @Test("N9, N6: a slice protects no page of which its subscribers were not told", arguments: mechanisms)
  func toldFirst(_ mechanism: WriteTracking.Mechanism) throws {
    try with { region in
      let tracker = try region.trackWrites(mechanism)
      let recorder = RecordingNotifier()
      let subscription = try region.subscribe(recorder, to: 5000..<6000)
      try region.write(version: 2, to: stride(from: 0, to: 3000, by: 3))
      let thread = Int(Kernel.threadID)
      let count = Shared()
      TestHooks.set(.armedSlice) { _ in
        guard Int(Kernel.threadID) == thread, count.add() == 1 else { return }
        do { try TestThread { try region.write(version: 3, to: [5500]) }.join() } catch { Issue.record("\(error)") }
      }
      let snapshot = try region.snapshot()
      #expect(count.value > 0)
      #expect(recorder.take().map(\.kind) == [.start, .middle, .end])
      #expect(try snapshot.pages { $0 == 5500 ? 3 : $0 < 3000 && $0 % 3 == 0 ? 2 : 1 } == [])
      #expect(try tracker.collect().contains(5500))
      snapshot.close()
      subscription.remove()
      try tracker.stop()
    }
  }

  @Test(
    "N5, N9, N10: slices and moment are one pair, and who subscribes in between hears of all of it", arguments: mechanisms)
  func onePair(_ mechanism: WriteTracking.Mechanism) throws {
    try with { region in
      let all = 0..<Self.pageCount
      let early = RecordingNotifier()
      let subscription = try region.subscribe(early)
      let first = try region.snapshot(.init(mechanism: mechanism))
      #expect(early.take(.start, .end) == [.start(.writeTracking, all), .end(.writeTracking, all)])
      try region.write(version: 2, to: stride(from: 1, to: 9000, by: 3))
      let second = try region.snapshot()
      // Faults opened neighbours along.
      let pair = early.take(.start, .end)
      #expect(pair.map(\.kind) == [.start, .end])
      #expect(pair.allSatisfy { $0.pages.lowerBound <= 1 && $0.pages.upperBound >= 8999 })
      second.close()
      first.close()
      try region.endSnapshots()
      _ = early.take()

      // It is there when the snapshot is, or hears of it.
      let late = RecordingNotifier()
      let subscriptions = Mutex<[Subscription]>([])
      let subscriber = Mutex<TestThread?>(nil)
      TestHooks.set(.armedSlice) { end in
        guard end == Self.middle, subscriber.withLock({ $0 == nil }) else { return }
        let thread = TestThread {
          let made = try region.subscribe(late)
          subscriptions.withLock { $0.append(made) }
        }
        subscriber.withLock { $0 = thread }
        _ = spin { thread.hasEnded || thread.isAsleep }
      }
      let third = try region.snapshot(.init(mechanism: mechanism))
      try #require(subscriber.withLock { $0 }).join()
      let pairs = late.take(.start, .end)
      #expect(pairs.isEmpty || pairs == [.start(.writeTracking, all), .end(.writeTracking, all)])
      let others = early.take(.start, .end)
      #expect(others.prefix(2) == [.start(.writeTracking, all), .end(.writeTracking, all)])
      #expect(others.dropFirst(2) == pairs.prefix(others.count - 2))
      third.close()
      for each in subscriptions.withLock({ $0 }) { each.remove() }
      subscription.remove()
    }
  }
}

/// A pin that another thread drops.
private final class KeptPin: Sendable {
  private let pin: Mutex<Pin?>
  init(_ pin: consuming Pin) { self.pin = Mutex(pin) }
  func drop() { pin.withLock { $0 = nil } }
}
