import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// What a child process has of managed memory.
@Suite("fork, posix_spawn and exec") struct ForkTests {
  /// The code of the error that `body` throws.
  private static func code(_ body: () throws -> Void) -> PinError.Code? {
    do { try body() } catch { return (error as? PinError)?.code }
    return nil
  }

  struct Case: Sendable, Codable, CustomStringConvertible {
    var mechanism: WriteTracking.Mechanism
    var isPool = false
    var description: String { ".\(mechanism) on \(isPool ? "a pool" : "anonymous memory")" }
    var backing: Backing { isPool ? .pool : .anonymous(hugePages: .never) }
    static let all = [false, true].flatMap { isPool in Mechanisms.all.map { Case(mechanism: $0, isPool: isPool) } }
  }

  @Test("Managed memory is not inherited: a child that touches it gets SIGSEGV", arguments: Case.all)
  func notInherited(_ example: Case) async {
    await #expect(processExitsWith: .success) { [example = example as Case] in
      ct_deadline(60)
      _ = ct_default(SIGSEGV)
      let tracked = try Tracked(example.mechanism, backing: example.backing)
      let address = tracked.address(of: 3)
      check(childStatus { CInt(ct_load(address)) }, is: 1000 + SIGSEGV)
      check(
        childStatus {
          ct_store(address, 1); return 0
        }, is: 1000 + SIGSEGV)
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test(
    "Every call in a child throws .notInherited, and dropping everything does nothing",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals and has no child of fork()"),
    arguments: Mechanisms.all)
  func callsInChild(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try Tracked(mechanism)
      let (space, region, tracker) = (tracked.space, tracked.region, tracked.tracker)
      let calls: [@Sendable () throws -> Void] = [
        { _ = try region.load(fromByteOffset: 0, as: UInt8.self) },
        { try region.store(UInt8(1), toByteOffset: 0) },
        { try unsafe region.withUnsafeMutableBytes { _ in } },
        { try region.protect(0..<1) },
        { try region.discard(0..<1) },
        { try region.unmap() },
        { _ = try region.trackWrites(mechanism) },
        { _ = try tracker.collect() },
        { try tracker.pause() },
        { try tracker.resume() },
        { _ = try space.map(pages: 1) },
        { _ = try space.adopt(region.addresses) },
        { try space.close() },
      ]
      for (index, call) in calls.enumerated() {
        let status = childStatus { Self.code(call) == .notInherited ? 0 : 1 }
        check(status, is: 0, "call \(index)")
      }
      // A space of the child's own works.
      let status = childStatus {
        guard let own = try? Tracked(mechanism) else { return 1 }
        guard (try? own.region.store(UInt8(5), toByteOffset: 4096)) != nil else { return 2 }
        guard (try? own.tracker.collect().runs) == [1..<2] else { return 3 }
        return (try? own.close()) == nil ? 4 : 0
      }
      check(status, is: 0)
      try tracked.expectExact()
      try tracked.close()
    }
  }

  private final class Held {
    var tracked: Tracked?
    init(_ tracked: Tracked) { self.tracked = tracked }
  }
  private static let noCallback: @Sendable (FirstWrite) -> Void = { _ in }

  @Test("A child that drops everything neither waits nor closes what is now its own", arguments: Mechanisms.all)
  func droppedInChild(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let held = Held(try Tracked(mechanism, onFirstWrite: mechanism == .asynchronous ? nil : Self.noCallback))
      // Fork while another thread holds the wrprotect lock: the child's copy of it is never released.
      let isHeld = Atomic<Bool>(false)
      let mayGo = Atomic<Bool>(false)
      TestHooks.set(.exclusiveHeld) { _ in
        isHeld.store(true, ordering: .releasing)
        while !mayGo.load(ordering: .acquiring) { Kernel.relax() }
      }
      let tracker = held.tracked!.tracker
      let collector = HostThread { [tracker] in _ = try? tracker.collect() }
      while !isHeld.load(ordering: .acquiring) { Kernel.relax() }
      let number = ct_first_userfaultfd()
      let status = childStatus {
        if number >= 0, ct_occupy(number) != number { return 2 }
        held.tracked = nil
        return number < 0 || ct_is_dev_null(number) == 1 ? 0 : 3
      }
      check(status, is: 0)
      mayGo.store(true, ordering: .releasing)
      collector.join()
      TestHooks.set(.exclusiveHeld, nil)
      try held.tracked?.expectExact()
    }
  }

  @Test("With inheritsAcrossFork a child reads and writes its own copy", arguments: Mechanisms.all)
  func inherited(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      _ = ct_default(SIGSEGV)
      _ = ct_default(SIGBUS)
      let tracked = try Tracked(mechanism, configure: { $0.inheritsAcrossFork = true })
      // One page open, the others armed.
      ct_store(tracked.address(of: 2), 42)
      let status = childStatus {
        for page in 0..<64 where ct_load(tracked.address(of: page)) != (page == 2 ? 42 : 1) { return 1 }
        for page in 0..<64 { ct_store(tracked.address(of: page), 99) }
        for page in 0..<64 where ct_load(tracked.address(of: page)) != 99 { return 2 }
        return Self.code { _ = try tracked.tracker.collect() } == .notInherited ? 0 : 3
      }
      check(status, is: 0)
      for page in 0..<64 { check(ct_load(tracked.address(of: page)), is: (page == 2 ? 42 : 1)) }
      try check(tracked.tracker.collect().runs, is: [2..<3])
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("Adopted memory is inherited as the program's own, unprotected", arguments: Mechanisms.all, [false, true])
  func adopted(_ mechanism: WriteTracking.Mechanism, isShared: Bool) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, isShared = isShared as Bool] in
      ct_deadline(60)
      _ = ct_default(SIGSEGV)
      _ = ct_default(SIGBUS)
      let space = try AddressSpace()
      let start = ct_map_anonymous(16 * 4096, isShared ? 1 : 0)
      for page in 0..<16 { ct_store(start + UInt64(page) * 4096, 1) }
      let region = try space.adopt(AddressRange(start: UInt(start), count: 16 * 4096))
      let tracker = try region.trackWrites(mechanism)
      _ = try tracker.collect()
      ct_store(start + 4096, 7)
      let status = childStatus {
        if ct_load(start + 4096) != 7 { return 1 }
        for page in 0..<16 { ct_store(start + UInt64(page) * 4096 + 1, 9) }
        return 0
      }
      check(status, is: 0)
      // A shared page that the child wrote has changed; that is not this process's write, and no fault of it.
      check(ct_load(start + 1), is: (isShared ? 9 : 0))
      try check(tracker.collect().runs, is: [1..<2])
      ct_store(start + 5 * 4096, 3)
      try check(tracker.collect().runs, is: [5..<6])
      try space.close()
    }
  }

  @Test("A child does not keep the parent's userfaultfds", arguments: Mechanisms.onUserfaultfd)
  func descriptorsInChild(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try (0..<4).map { _ in try Tracked(mechanism) }
      check(ct_userfaultfd_count(), is: 8)
      check(childStatus { ct_userfaultfd_count() }, is: 0)
      // Also not one that took over from a number that somebody closed, and it leaves alone what has that number now.
      let number = ct_first_userfaultfd()
      check(ct_occupy(number), is: number)
      for each in tracked { try each.expectExact() }
      while ct_userfaultfd_count() != 8 { try tracked.first!.space.faultHandler().alarm.signal() }
      check(childStatus { ct_userfaultfd_count() }, is: 0)
      check(childStatus { ct_is_dev_null(number) }, is: 1)
      for each in tracked { try each.close() }
      check(ct_userfaultfd_count(), is: 0)
      check(ct_is_dev_null(number), is: 1)
    }
  }

  @Test("A child does not keep the parent's userfaultfds, however many there are")
  func manyDescriptorsInChild() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      _ = ct_raise_file_limit()
      let spaces = try (0..<2).map { _ in try AddressSpace() }
      let trackers = try spaces.flatMap { space in
        try (0..<1100).map { _ in try space.map(pages: 1).trackWrites(.handlerThread) }
      }
      check(ct_userfaultfd_count(), is: 4400)
      check(childStatus { min(250, ct_userfaultfd_count()) }, is: 0)
      for tracker in trackers { try tracker.stop() }
      check(ct_userfaultfd_count(), is: 0)
    }
  }

  @Test("exec and posix_spawn close everything", arguments: Mechanisms.all)
  func exec(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let before = Self.descriptorsAfterExec()
      let tracked = try Tracked(mechanism, backing: .pool)
      ct_store(tracked.address(of: 1), 2)
      check(Self.descriptorsAfterExec(), is: before)
      check(!before.contains("userfaultfd"), "!before.contains(\"userfaultfd\")")
      try check(tracked.tracker.collect().runs, is: [1..<2])
      try tracked.expectExact()
      try tracked.close()
    }
  }

  private static func descriptorsAfterExec() -> String {
    var output = [CChar](repeating: 0, count: 1 << 14)
    let script = "-c\u{1}for f in /proc/self/fd/*; do readlink $f; done | grep -v -e pipe: -e socket: -e /proc | sort"
    let status = unsafe output.withUnsafeMutableBufferPointer {
      unsafe ct_spawn("/bin/sh", script, 1, $0.baseAddress!, CInt($0.count))
    }
    check(status, is: 0)
    return String(decoding: output.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// The threads of the parent's space are in the middle of anything when the child is made. `PINKIT_FORK_ROUNDS` sets how many there are.
  @Test(
    "K5: a child makes a space of its own and closes it, whenever it was forked",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer has no child of fork()"))
  func ownSpace() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(1200)
      func live(_ mechanism: WriteTracking.Mechanism) throws -> Int {
        let tracked = try Tracked(mechanism)
        try tracked.region.store(UInt64(1), toByteOffset: 4096)
        let count = try tracked.tracker.collect().count
        try tracked.close()
        return count
      }
      for round in 0..<environmentNumber("PINKIT_FORK_ROUNDS", or: 20) {
        let mechanism = Mechanisms.all[round % Mechanisms.all.count]
        // It has only just begun to live, or has ended a moment ago.
        let parent = try Tracked(mechanism)
        if round % 2 == 0 { try parent.close() }
        check(childStatus { (try? live(mechanism)) == 1 ? 0 : 1 }, is: 0, "child \(round)")
        if round % 2 == 1 { try parent.close() }
      }
    }
  }

  @Test("W5: children come and go beside writers and a collector", arguments: Mechanisms.all, [false, true])
  func storm(_ mechanism: WriteTracking.Mechanism, inherits: Bool) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, inherits = inherits as Bool] in
      ct_deadline(120)
      let shadowed = try ShadowedRegion(mechanism, pages: 96, configure: { $0.inheritsAcrossFork = inherits })
      let isOver = Atomic<Bool>(false)
      let writers = (0..<2).map { index in
        HostThread { while !isOver.load(ordering: .acquiring) { shadowed.write(200, as: index) } }
      }
      let collector = HostThread { while !isOver.load(ordering: .acquiring) { shadowed.collect() } }
      // Trackers that begin and end open and close descriptors beside the forks.
      let restless = HostThread {
        do {
          let region = try shadowed.tracked.space.map(pages: 4)
          while !isOver.load(ordering: .acquiring) { try region.trackWrites(mechanism).stop() }
        } catch {
          Issue.record(error)
        }
      }
      let address = shadowed.tracked.address(of: 5)
      for round in 0..<60 {
        if round % 10 == 0 { check(Self.descriptorsAfterExec().contains("userfaultfd"), is: false) }
        let status = childStatus {
          if inherits { for page in 0..<96 { ct_store(address - 5 * 4096 + UInt64(page) * 4096 + 64, 77) } }
          return ct_userfaultfd_count()
        }
        check(status, is: 0)
      }
      isOver.store(true, ordering: .releasing)
      for thread in writers + [collector, restless] { thread.join() }
      shadowed.collect()
      shadowed.expectNothingLost()
      for page in 0..<96 { check(ct_load(shadowed.tracked.address(of: page) + 64), is: 0) }
      try shadowed.tracked.close()
    }
  }
}
