import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// K5: what a child of `fork()` drops is a copy: the parent's locks, files and rings stay as they are.
@Suite(
  "K5: cleaning up in a child",
  .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer has no child of fork()"))
struct ForkCleanupTests {
  private final class Held<Value>: @unchecked Sendable {
    var value: Value?
    init(_ value: Value) { self.value = value }
  }

  @Test("A child that drops a store leaves the parent's lock; a parent that drops it takes the lock with it")
  func storeLock() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let directory = try ImageDirectory()
      let path = directory("file")
      let held = Held(try FileStore(path: path, creating: 8192))
      check(
        childStatus {
          held.value = nil
          return 0
        }, is: 0)
      check(errorCode { _ = try FileStore(path: path) }, is: .inUse)
      // Another child has the descriptor until it ends.
      var ends: [CInt] = [0, 0]
      check(unsafe pipe(&ends), is: 0)
      let process = ct_fork()
      if process == 0 {
        close(ends[1])
        var byte: UInt8 = 0
        _ = unsafe read(ends[0], &byte, 1)
        ct_exit(0)
      }
      held.value = nil
      check(errorCode { _ = try FileStore(path: path) } == nil, "the lock outlived its store")
      close(ends[1])
      check(ct_wait(process), is: 0)
    }
  }

  @Test("A child neither writes, reads nor flushes the store of its parent, and ends no registration")
  func calls() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let directory = try ImageDirectory()
      let store = try FileStore(path: directory("file"), creating: 8192)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 4)
      try region.fill(with: 5)
      let ends = Shared()
      let registration = try unsafe region.register(0..<2) { _ in { _ = ends.add() } }
      let page = AddressRange(start: region.addresses.start, count: 4096)
      check(
        childStatus {
          guard store.write([PageTransfer(pages: 0..<1, memory: page)])[0]?.code == .notInherited else { return 2 }
          guard errorCode({ try store.flush() }) == .notInherited else { return 3 }
          var bytes: [UInt8] = Array(repeating: 0, count: 4096)
          let reading = unsafe bytes.withUnsafeMutableBytes { bytes in
            errorCode { unsafe try store.read(0..<1, into: bytes) }
          }
          guard reading == .notInherited else { return 4 }
          do { try registration.close() } catch {
            return (error as? PinError)?.code == .notInherited && ends.value == 0 ? 0 : 5
          }
          return 6
        }, is: 0)
      try registration.close()
      check(ends.value, is: 1)
      try store.flush()
      try space.close()
    }
  }

  @Test("A child that is forked while an image is written neither writes nor removes it", arguments: [false, true])
  func image(_ cancels: Bool) async {
    await #expect(processExitsWith: .success) { [cancels = cancels as Bool] in
      ct_deadline(240)
      let directory = try ImageDirectory()
      let source = ArraySource(pages: 3000)
      var isChild = false
      var status: CInt = -1
      var calls = 0
      do throws(PinError) {
        let image = try ImageWriter.write(source, to: directory("image")) { _ in
          calls += 1
          guard calls == 2 else { return .proceed }
          let process = ct_fork()
          isChild = process == 0
          if !isChild { status = ct_wait(process) }
          return isChild && cancels ? .cancel : .proceed
        }
        if isChild { ct_exit(2) }
        try image.verify()
      } catch {
        if isChild { ct_exit(error.code == .notInherited ? 0 : 3) }
        throw error
      }
      check(status, is: 0)
      check(directory.names, is: ["image", "image.pinkit"])
    }
  }

  @Test(
    "A child that drops a ring neither cancels nor drops what the parent has in it",
    .enabled(if: ClosedFileTests.hasRing, "needs io_uring"))
  func ring() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      final class Ring: @unchecked Sendable {
        var ring: SubmissionRing?
        init() throws { ring = try SubmissionRing(entries: 8) }
      }
      var ends: [CInt] = [0, 0]
      check(unsafe pipe(&ends), is: 0)
      let memory = try Mapping(count: 8192)
      let held = try Ring()
      let first = AddressRange(start: memory.range.start, count: 1)
      // One waits in the kernel, one in the queue.
      check(held.ring!.queueRead(from: ends[0], at: 0, into: first, userData: 1), is: .queued)
      try held.ring!.submit()
      let byte = AddressRange(start: memory.range.start + 4096, count: 1)
      check(held.ring!.queueWrite(to: ends[1], at: 0, from: byte, userData: 2), is: .queued)
      check(
        childStatus {
          var code: PinError.Code?
          // What it queues or drops would be the parent's.
          if held.ring!.queueWrite(to: ends[1], at: 0, from: byte, userData: 3) == .queued { return 2 }
          if held.ring!.discardQueued() != 0 || held.ring!.nextCompletion() != nil { return 3 }
          do throws(PinError) { try held.ring!.submit() } catch { code = error.code }
          held.ring = nil
          return code == .notInherited ? 0 : 1
        }, is: 0)
      try held.ring!.submit(waitingFor: 2)
      let done = held.ring!.completions().sorted { $0.userData < $1.userData }
      check(done.map(\.outcome), is: [.done(bytes: 1), .done(bytes: 1)])
    }
  }

  @Test("A child gets no ring of its parent's out of a pool", .enabled(if: ClosedFileTests.hasRing, "needs io_uring"))
  func ringPool() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let pool = RingPool()
      pool.give(try SubmissionRing(entries: 8))
      check(
        childStatus {
          guard let ring = pool.take() else { return 1 }
          return ring.forkGeneration == Kernel.forkGeneration && ring.capacity == RingPool.depth ? 0 : 2
        }, is: 0)
      check(pool.take()?.capacity, is: 8)
    }
  }

  @Test("A child has no descriptor of its parent's memory")
  func memory() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let memory = try ProcessMemory()
      check(Memory.prepareCheckedCopies(), "no checked copies")
      let link = "/\(getpid())/mem"
      check(unsafe ct_low_descriptors_of(link, 70_000), is: 2)
      check(childStatus { unsafe ct_low_descriptors_of(link, 70_000) }, is: 0)
      withExtendedLifetime(memory) {}
    }
  }

  @Test("A child that drops a family of clones punches no hole into the parent's frames", arguments: Mechanisms.synchronous)
  func pool(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(240)
      struct Family {
        let space: AddressSpace
        let regions: [Region]
      }
      let space = try AddressSpace()
      let parent = try space.map(.pool, pages: 32)
      try parent.fill(with: 3)
      let clone = try parent.clone(mechanism: mechanism)
      for page in 0..<16 { clone.poke(4, page) }
      let snapshot = try clone.snapshot(SnapshotOptions(mechanism: mechanism))
      let pool = try space.framePool()
      let resident = pool.usage.residentBytes
      let held = Held(Family(space: space, regions: [parent, clone]))
      check(
        childStatus {
          pool.buryDead()
          held.value = nil
          snapshot.close()
          return pool.usage.residentBytes == 0 ? 0 : 1
        }, is: 0)
      check(pool.usage.residentBytes, is: resident)
      for page in 0..<32 {
        check(parent.peek(page), is: 3)
        check(clone.peek(page), is: page < 16 ? 4 : 3)
      }
      snapshot.close()
      try space.close()
    }
  }

  @Test("A child has none of the descriptors that show the parent's memory")
  func pagemap() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let tracked = try Tracked(.asynchronous)
      check(unsafe ct_low_descriptors_of("/pagemap", 70_000) > 0, "there is none to begin with")
      check(childStatus { unsafe ct_low_descriptors_of("/pagemap", 70_000) + ct_userfaultfd_count() }, is: 0)
      try tracked.expectExact()
      try tracked.close()
    }
  }
}
