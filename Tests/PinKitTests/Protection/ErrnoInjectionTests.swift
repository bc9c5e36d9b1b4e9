import CTestSupport
import Glibc
import SystemPackage
import Testing

@testable import PinKit

/// Every errno that a call of the fault path can return, injected once: what the kernel asks to try again is tried again, and what it
/// refuses becomes a typed error that loses nothing, or the region's failure.
@Suite("Injected errors") struct ErrnoInjectionTests {
  enum Outcome: Equatable {
    /// Nobody notices; tracking stays exact.
    case goesOn
    /// A typed error; nothing is lost, and the next try succeeds.
    case refused(PinError.Code)
    /// The failure policy applies: writers go on, and every later call throws this.
    case failed(PinError.Code)
  }

  struct Row {
    var call: Injection.Call
    var errno: Errno
    var outcome: Outcome
    var times = 1
    var name: String { "\(call) \(errno) (\(errno.rawValue)) × \(times)" }
  }

  private static func rows(_ call: Injection.Call, times: Int = 1, _ outcomes: KeyValuePairs<Errno, Outcome>) -> [Row] {
    outcomes.map { Row(call: call, errno: $0.key, outcome: $0.value, times: times) }
  }

  /// Whether a call of the region throws, and what.
  private static func code(_ body: () throws -> Void) -> PinError.Code? {
    do { try body() } catch { return (error as? PinError)?.code }
    return nil
  }

  private static func space() throws -> (AddressSpace, Region) {
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = .failRegion
    configuration.logger = LogCapture().logger
    let space = try AddressSpace(configuration: configuration)
    let region = try space.map(.anonymous(hugePages: .never), pages: 64)
    try region.fill(with: 1)
    return (space, region)
  }

  private static func expectExact(_ region: Region, _ tracker: WriteTracker, _ name: String) throws {
    for page in [1, 5, 6, 40] { try region.store(UInt8(9), toByteOffset: page * 4096 + 3) }
    try check(tracker.collect().runs, is: [1..<2, 5..<7, 40..<41], name)
    try check(tracker.collect().isEmpty, "not empty: \(name)")
  }

  @Test("W1, K1: a fault that waits while all is protected anew is not resolved then: its thread may have got over it")
  func parked() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(280)
      var configuration = AddressSpace.Configuration()
      configuration.readerCount = 1
      configuration.logger = LogCapture().logger
      let space = try AddressSpace(configuration: configuration)
      let region = try space.map(.anonymous(hugePages: .never), pages: 64)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(.handlerThread)
      let (mayGoOn, turns) = (Shared(), Shared())
      // The first try, and the one at the end of the reader's turn.
      Injection.arm(.unprotect, .resourceTemporarilyUnavailable, times: 2)
      TestHooks.set(.readerIdle) { _ in
        guard Injection.count >= 2 || turns.value > 0 else { return }
        turns.add()
        _ = spin { mayGoOn.value == 1 }
      }
      let writer = TestThread { try region.store(UInt8(2), toByteOffset: 5 * 4096) }
      check(spin(forAtMost: 200) { turns.value == 1 }, "no fault waits")
      Injection.disarm()
      try region.pin(5..<6, .write).unpin()
      try writer.join()
      try check(tracker.collect().runs, is: [5..<6])
      mayGoOn.value = 1
      check(spin(forAtMost: 200) { turns.value >= 3 }, "the reader has ended")
      try check(tracker.collect().runs, is: [])
      TestHooks.set(.readerIdle, nil)
      try space.close()
    }
  }

  // MARK: Starting

  private static func starting(_ mechanism: WriteTracking.Mechanism) -> [Row] {
    let writeProtect = rows(
      .writeProtect,
      [
        .resourceTemporarilyUnavailable: .goesOn, .interrupted: .goesOn, .badFileDescriptor: .goesOn,
        .invalidArgument: .refused(.unsupported), .badAddress: .refused(.system), .noMemory: .refused(.outOfMemory),
        .noSuchFileOrDirectory: .failed(.mappingChanged), .noSuchProcess: .failed(.mappingChanged),
      ])
    let opening =
      rows(.open, [.notPermitted: .goesOn, .tooManyOpenFiles: .goesOn, .noSuchFileOrDirectory: .goesOn])
      + rows(
        .open, times: 3,
        [
          .notPermitted: .refused(.permissionDenied), .noFunction: .refused(.unsupported),
          .tooManyOpenFiles: .refused(.limitReached), .tooManyOpenFilesInSystem: .refused(.limitReached),
        ])
      + rows(.api, [.invalidArgument: .refused(.unsupported)])
      + rows(
        .register,
        [
          .invalidArgument: .refused(.unsupported), .resourceBusy: .refused(.inUse),
          .notPermitted: .refused(.permissionDenied), .noMemory: .refused(.outOfMemory),
        ])
    let scanning = rows(
      .pagemapScan,
      [
        .interrupted: .goesOn, .notPermitted: .refused(.permissionDenied), .badAddress: .refused(.system),
        .noMemory: .refused(.outOfMemory), .invalidArgument: .refused(.unsupported),
        .inappropriateIOCTLForDevice: .refused(.unsupported),
      ])
    switch mechanism {
    case .asynchronous: return opening + scanning
    case .mprotect:
      return rows(.mprotect, [.noMemory: .refused(.outOfMemory), .permissionDenied: .refused(.permissionDenied)])
    default: return opening + writeProtect
    }
  }

  @Test("trackWrites that fails leaves nothing behind, and works when tried again", arguments: Mechanisms.all)
  func start(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(120)
      // Each several times, for a leak to stand out from what the process opens for itself.
      let kinds = Self.starting(mechanism)
      let rows = (0..<4).flatMap { _ in kinds }
      let atFirst = ct_descriptor_count()
      for row in rows {
        let (space, region) = try Self.space()
        _ = try space.faultHandler()
        let before = ct_userfaultfd_count()
        Injection.arm(row.call, row.errno, times: row.times)
        let code = Self.code { try region.trackWrites(mechanism).stop() }
        check(Injection.count, is: row.times, row.name)
        Injection.disarm()
        switch row.outcome {
        case .goesOn: check(code, is: nil, row.name)
        case .refused(let expected), .failed(let expected): check(code, is: expected, row.name)
        }
        // A number that was only said to be closed is open still, and nobody's.
        if row.errno != .badFileDescriptor { check(ct_userfaultfd_count() <= before, "left by \(row.name)") }
        try region.fill(with: 2)
        if case .failed(let expected) = row.outcome {
          check(Self.code { _ = try region.trackWrites(mechanism) }, is: expected, row.name)
        } else {
          let tracker = try region.trackWrites(mechanism)
          try Self.expectExact(region, tracker, row.name)
        }
        try space.close()
      }
      // What is left of one kind is left each time.
      let lying = rows.count { $0.errno == .badFileDescriptor }
      check(ct_descriptor_count() < atFirst + CInt(4 + 4 * lying), "descriptors were left")
    }
  }

  // MARK: Collecting

  private static func collecting(_ mechanism: WriteTracking.Mechanism) -> [Row] {
    switch mechanism {
    case .asynchronous:
      rows(
        .pagemapScan,
        [
          .interrupted: .goesOn, .notPermitted: .refused(.permissionDenied), .badAddress: .refused(.system),
          .noMemory: .refused(.outOfMemory), .invalidArgument: .refused(.unsupported),
          .inappropriateIOCTLForDevice: .refused(.unsupported),
        ])
    case .mprotect: rows(.mprotect, [.noMemory: .refused(.outOfMemory), .permissionDenied: .refused(.permissionDenied)])
    default:
      rows(
        .writeProtect,
        [
          .resourceTemporarilyUnavailable: .goesOn, .interrupted: .goesOn, .badFileDescriptor: .goesOn,
          .invalidArgument: .refused(.unsupported), .badAddress: .refused(.system), .noMemory: .refused(.outOfMemory),
          .noSuchFileOrDirectory: .failed(.mappingChanged), .noSuchProcess: .failed(.mappingChanged),
        ])
    }
  }

  @Test("W5: a collection that fails loses nothing", arguments: Mechanisms.all)
  func collect(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(120)
      for row in Self.collecting(mechanism) {
        // The first run, and one in the middle.
        for skip in [0, 1] where skip == 0 || mechanism != .asynchronous {
          let (space, region) = try Self.space()
          let tracker = try region.trackWrites(mechanism)
          _ = try tracker.collect()
          for page in [2, 3, 30, 60] { try region.store(UInt8(9), toByteOffset: page * 4096) }
          Injection.arm(row.call, row.errno, skip: skip)
          var dirty: DirtySet?
          let code = Self.code { dirty = try tracker.collect() }
          check(Injection.count, is: 1, row.name)
          Injection.disarm()
          let expected = [2..<4, 30..<31, 60..<61]
          switch row.outcome {
          case .goesOn: check(dirty?.runs, is: expected, row.name)
          case .refused(let refusal):
            check(code, is: refusal, row.name)
            // A page may be written again, whatever became of its protection.
            for page in [2, 30] { try region.store(UInt8(10), toByteOffset: page * 4096) }
            try check(tracker.collect().runs, is: expected, row.name)
          case .failed(let failure):
            check(code, is: failure, row.name)
            try region.fill(with: 3)
            check(Self.code { _ = try tracker.collect() }, is: failure, row.name)
          }
          if case .failed = row.outcome {} else { try Self.expectExact(region, tracker, row.name) }
          try space.close()
        }
      }
    }
  }

  // MARK: Faults

  private static func faulting(_ mechanism: WriteTracking.Mechanism) -> [Row] {
    let unprotect = rows(
      .unprotect,
      [
        .resourceTemporarilyUnavailable: .goesOn, .interrupted: .goesOn, .badFileDescriptor: .goesOn,
        .inappropriateIOCTLForDevice: .goesOn,
        .invalidArgument: .failed(.handlerLost), .badAddress: .failed(.handlerLost), .noMemory: .failed(.handlerLost),
        .notPermitted: .failed(.handlerLost),
        .noSuchFileOrDirectory: .failed(.mappingChanged), .noSuchProcess: .failed(.mappingChanged),
      ])
    switch mechanism {
    case .handlerThread:
      return unprotect
        + rows(
          .read,
          [
            .resourceTemporarilyUnavailable: .goesOn, .interrupted: .goesOn, .badFileDescriptor: .goesOn,
            .invalidArgument: .failed(.handlerLost),
          ])
    case .inPlace: return unprotect
    default: return rows(.mprotect, [.permissionDenied: .failed(.handlerLost)])
    }
  }

  @Test(
    "A fault whose resolution fails is tried again, or fails the region; its writer goes on",
    arguments: Mechanisms.synchronous)
  func fault(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(120)
      for row in Self.faulting(mechanism) {
        let (space, region) = try Self.space()
        let tracker = try region.trackWrites(mechanism)
        _ = try tracker.collect()
        Injection.arm(row.call, row.errno)
        for page in [7, 8, 20] { try region.store(UInt8(9), toByteOffset: page * 4096) }
        check(Injection.count, is: 1, row.name)
        Injection.disarm()
        if case .failed(let failure) = row.outcome {
          check(Self.code { _ = try tracker.collect() }, is: failure, row.name)
          try region.fill(with: 3)
          check(Self.code { _ = try tracker.collect() }, is: failure, row.name)
        } else {
          try check(tracker.collect().runs, is: [7..<9, 20..<21], row.name)
          try Self.expectExact(region, tracker, row.name)
        }
        try region.unmap()
        try space.close()
      }
    }
  }

  @Test("ENOMEM from mprotect in a fault opens more pages instead")
  func widening() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let (space, region) = try Self.space()
      let tracker = try region.trackWrites(.mprotect)
      Injection.arm(.mprotect, .noMemory)
      try region.store(UInt8(9), toByteOffset: 7 * 4096)
      check(Injection.count, is: 1)
      let dirty = try tracker.collect()
      check(dirty.contains(7) && !dirty.isExact, "\(dirty)")
      check(dirty.exactPages.runs, is: [7..<8])
      check(space.statistics.widenedOpenings, is: 1)
      try Self.expectExact(region, tracker, "after widening")
      try space.close()
    }
  }

  @Test(
    "EAGAIN for longer than the patience: a typed error for who collects, the policy for who writes",
    arguments: [true, false])
  func patience(_ isCollecting: Bool) async {
    await #expect(processExitsWith: .success) { [isCollecting = isCollecting as Bool] in
      ct_deadline(60)
      for mechanism in [WriteTracking.Mechanism.handlerThread, .inPlace] {
        var configuration = AddressSpace.Configuration()
        configuration.failurePolicy = .failRegion
        configuration.patience = 0.1
        configuration.logger = LogCapture().logger
        let space = try AddressSpace(configuration: configuration)
        let region = try space.map(.anonymous(hugePages: .never), pages: 64)
        let tracker = try region.trackWrites(mechanism)
        if isCollecting {
          try region.store(UInt8(9), toByteOffset: 7 * 4096)
          Injection.arm(.writeProtect, .resourceTemporarilyUnavailable, times: .max >> 33)
          check(Self.code { _ = try tracker.collect() }, is: .timedOut)
          Injection.disarm()
          try check(tracker.collect().runs, is: [7..<8])
          try Self.expectExact(region, tracker, "after EAGAIN")
        } else {
          Injection.arm(.unprotect, .resourceTemporarilyUnavailable, times: .max >> 33)
          try region.store(UInt8(9), toByteOffset: 7 * 4096)
          Injection.disarm()
          check(Self.code { _ = try tracker.collect() }, is: .timedOut)
        }
        try space.close()
      }
    }
  }

  // MARK: Ending, waking, mapping

  @Test("Ending and waking survive refusals", arguments: Mechanisms.onUserfaultfd)
  func ending(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      for errno in [Errno.invalidArgument, .noMemory] {
        let (space, region) = try Self.space()
        let tracker = try region.trackWrites(mechanism)
        Injection.arm(.unregister, errno)
        try tracker.stop()
        check(Injection.count, is: 1)
        Injection.disarm()
        try region.fill(with: 4)
        check(ct_userfaultfd_count(), is: 0)
        try Self.expectExact(region, try region.trackWrites(mechanism), "after unregister \(errno)")
        try space.close()
      }
      for errno in [Errno.invalidArgument, .badFileDescriptor] {
        let (space, region) = try Self.space()
        let tracker = try region.trackWrites(mechanism)
        Injection.arm(.wake, errno)
        let writers = (0..<4).map { index in
          HostThread { for page in 0..<64 { try? region.store(UInt8(index), toByteOffset: page * 4096) } }
        }
        for writer in writers { writer.join() }
        Injection.disarm()
        try check(tracker.collect().runs, is: [0..<64])
        try Self.expectExact(region, tracker, "after wake \(errno)")
        try space.close()
      }
    }
  }

  @Test("Mapping that fails leaves nothing behind")
  func mapping() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace()
      try space.map(.pool, pages: 1024).unmap()
      let table: [(Injection.Call, Errno, Int, Backing, PinError.Code)] = [
        (.mmap, .noMemory, 0, .anonymous, .outOfMemory), (.mmap, .noMemory, 1, .anonymous, .outOfMemory),
        (.mmap, .noMemory, 2, .anonymous, .outOfMemory), (.mmap, .noMemory, 1, .pool, .outOfMemory),
        (.memfd, .tooManyOpenFiles, 0, .hugetlb, .limitReached), (.memfd, .noMemory, 0, .hugetlb, .outOfMemory),
        (.madvise, .invalidArgument, 0, .anonymous, .unsupported), (.madvise, .noMemory, 0, .anonymous, .outOfMemory),
      ]
      let atFirst = ct_descriptor_count()
      for (call, errno, skip, backing, code) in table {
        let mappings = ct_mapping_count()
        Injection.arm(call, errno, skip: skip)
        check(Self.code { _ = try space.map(backing, pages: 1024) }, is: code, "\(call) \(errno) skip \(skip) \(backing)")
        check(Injection.count, is: 1, "\(call) \(errno) skip \(skip)")
        Injection.disarm()
        // A sanitizer maps a shadow for what is mapped.
        if ct_has_sanitizer() == 0 {
          check(ct_mapping_count() <= mappings + 1, "mappings after \(call) \(errno) skip \(skip)")
        }
      }
      // The process opens and closes some of its own meanwhile; a leak shows in every row.
      check(ct_descriptor_count() < atFirst + CInt(table.count), "descriptors were left")
      check(space.mappedRegions.count, is: 0)
      // Advice that fails where trackWrites needs it.
      for errno in [Errno.invalidArgument, .resourceTemporarilyUnavailable, .noMemory] {
        let region = try space.map(.anonymous, pages: 64)
        // The first advice, against merging, may be refused; the second, against huge pages, may not.
        Injection.arm(.madvise, errno, skip: 1)
        let code = Self.code { try region.trackWrites(.asynchronous).stop() }
        check(Injection.count, is: 1, "\(errno)")
        Injection.disarm()
        check(code != nil, "\(errno) was swallowed")
        try region.fill(with: 1)
        let tracker = try region.trackWrites(.asynchronous)
        _ = try tracker.collect()
        try Self.expectExact(region, tracker, "after madvise \(errno)")
        // Advice that fails where a discard needs it. The kernel announces what it drops: here that was nothing.
        Injection.arm(.madvise, errno)
        check(Self.code { try region.discard(0..<8) } != nil, "discard swallowed \(errno)")
        Injection.disarm()
        try check(region.load(fromByteOffset: 0, as: UInt8.self), is: 1)
        try check(tracker.collect().isEmpty, "after a discard that dropped nothing")
        try region.unmap()
      }
      try space.close()
    }
  }
}
