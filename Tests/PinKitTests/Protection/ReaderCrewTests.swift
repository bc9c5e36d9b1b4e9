import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// How many fault readers there are.
@Suite("Fault readers on demand") struct ReaderCrewTests {
  /// Regions whose first writers are held up in a callback, each by a reader of its own.
  private struct HeldRegions {
    let space: AddressSpace
    let regions: [Region]
    let inside = Shared()
    let mayGoOn = Shared()
    private let sessions: [Session]

    /// A tracker cannot be copied, and so not be in an array.
    private final class Session {
      let tracker: WriteTracker
      init(_ tracker: consuming WriteTracker) { self.tracker = tracker }
    }

    init(_ count: Int, configure: (inout AddressSpace.Configuration) -> Void) throws {
      var configuration = AddressSpace.Configuration()
      configuration.logger = LogCapture().logger
      configure(&configuration)
      let space = try AddressSpace(configuration: configuration)
      let (inside, mayGoOn) = (inside, mayGoOn)
      let regions = try (0..<count).map { _ in try space.map(.anonymous(hugePages: .never), pages: 4) }
      sessions = try regions.map { region in
        Session(
          try region.trackWrites(.handlerThread) { _ in
            inside.add()
            mayGoOn.wait(for: 1, thenSpin: 0)
          })
      }
      (self.space, self.regions) = (space, regions)
    }

    var crew: Int { get throws { try space.faultHandler().crew.all.count } }

    /// Each in a thread of its own, as soon as `start` is not zero.
    func write(from start: Shared = Shared(1)) -> [TestThread] {
      regions.map { region in
        TestThread {
          start.wait(for: 1, thenSpin: 0)
          try region.store(UInt8(7), toByteOffset: 0)
        }
      }
    }

    /// The next write to each is a first one again.
    func collect() throws {
      for session in sessions { try check(session.tracker.collect().runs, is: [0..<1]) }
      (mayGoOn.value, inside.value) = (0, 0)
    }

    func close() throws {
      try collect()
      for session in sessions { try session.tracker.stop() }
      try space.close()
    }
  }

  @Test("There are two, one more for each that is held up, and two again when there is nothing to do")
  func grow() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let held = try HeldRegions(5) {
        $0.readerCount = 5
        $0.longestIdle = 1
      }
      for round in 0..<3 {
        if round > 0 { try held.collect() }
        check(spin { (try? held.crew) == 2 }, "more than two readers before round \(round)")
        let writers = held.write()
        check(spin { held.inside.value == 5 }, "\(held.inside.value) of 5 are served at once")
        try check(held.crew, is: 5)
        held.mayGoOn.value = 1
        for writer in writers { try writer.join() }
      }
      try held.close()
    }
  }

  @Test("There are never more than asked for") func cap() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      for count in 1...3 {
        let held = try HeldRegions(5) { $0.readerCount = count }
        let writers = held.write()
        check(spin { held.inside.value == count }, "\(held.inside.value) are served")
        // Whoever waits rings for another one at most once.
        let looks = Shared()
        TestHooks.set(.watching) { _ in looks.add() }
        try held.space.faultHandler().alarm.signal()
        check(spin { looks.value >= 3 }, "the watchdog does not look")
        TestHooks.set(.watching, nil)
        try check(held.crew, is: count)
        check(held.inside.value, is: count)
        held.mayGoOn.value = 1
        for writer in writers { try writer.join() }
        try held.close()
      }
    }
  }

  @Test(
    "Where the system has no thread for another one, those that there are go on; with room it comes",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer needs room of its own"))
  func noRoom() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let held = try HeldRegions(3) { $0.readerCount = 3 }
      let start = Shared()
      let writers = held.write(from: start)
      check(ct_limit_address_space(3 << 20), is: 0)
      start.value = 1
      check(spin { held.inside.value == 2 }, "\(held.inside.value) are served")
      let looks = Shared()
      TestHooks.set(.watching) { _ in looks.add() }
      check(spin { looks.value >= 3 }, "the watchdog does not look")
      try check(held.crew, is: 2)
      check(ct_limit_address_space(0), is: 0)
      check(spin { held.inside.value == 3 }, "there is no third reader")
      TestHooks.set(.watching, nil)
      held.mayGoOn.value = 1
      for writer in writers { try writer.join() }
      try held.close()
    }
  }

  @Test("K3: where all of them ended, new ones serve the regions that come after") func afterAllEnded() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let tracked = try Tracked(
        .handlerThread, onFirstWrite: { _ in KernelThread.exitCurrent() },
        configure: {
          $0.readerCount = 1
          $0.failurePolicy = .failRegion
        })
      let first = TestThread { try tracked.region.store(UInt8(7), toByteOffset: 0) }
      try first.join()
      check(spin { errorCode { _ = try tracked.tracker.collect() } == .handlerLost }, "nobody notices")
      let region = try tracked.space.map(.anonymous(hugePages: .never), pages: 4)
      let tracker = try region.trackWrites(.handlerThread)
      let second = TestThread { try region.store(UInt8(7), toByteOffset: 2 * 4096) }
      try second.join()
      try check(tracker.collect().runs, is: [2..<3])
      try tracker.stop()
      try check(tracked.space.faultHandler().crew.all.count, is: 1)
      try tracked.space.close()
    }
  }
}
