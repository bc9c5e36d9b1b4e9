import CTestSupport
import CUffd
import Glibc
import SystemPackage
import Testing

@testable import PinKit

private let hasRing = (try? SubmissionRing(entries: 1)) != nil

@Suite("Closing fixed buffers beside what is in flight") struct FixedBufferCloseTests {
  @Test(
    "P4, P6: pages stay pinned, and count as written, until the last READ_FIXED into them has ended",
    .enabled(if: hasRing, "needs io_uring"), arguments: Mechanisms.all, [false, true])
  func inFlight(_ mechanism: WriteTracking.Mechanism, drops: Bool) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, drops = drops as Bool] in
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      let region = try space.map(mechanism == .asynchronous ? .anonymous(hugePages: .never) : .pool, pages: 8)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism)
      var pipes: [[CInt]] = [[0, 0], [0, 0]]
      for index in 0..<2 { check(unsafe pipe(&pipes[index]), is: 0) }
      let writers = pipes.map { $0[1] }
      var buffers = try FixedBuffers(region, [2..<3, 5..<6])
      for index in 0..<2 {
        let source = FileDescriptor(rawValue: pipes[index][0])
        _ = try buffers.queueRead(from: source, at: 0, into: index, bytes: 0..<16)
      }
      try buffers.submit()
      _ = try tracker.collect()
      let turns = Shared()
      TestHooks.set(.finishingTransfers) { inFlight in
        let turn = turns.add()
        check(inFlight, is: 3 - turn)
        for page in [2, 5] {
          check(errorCode { try region.discard(page..<page + 1) }, is: .pinned, "turn \(turn), page \(page)")
        }
        check((try? tracker.collect().runs) ?? [], is: [2..<3, 5..<6], "turn \(turn)")
        // The kernel writes the page only now.
        var bytes = [UInt8](repeating: UInt8(70 + turn), count: 16)
        check(unsafe write(writers[turn - 1], &bytes, 16), is: 16)
      }
      if drops { _ = consume buffers } else { try buffers.close() }
      TestHooks.set(.finishingTransfers, nil)
      check(turns.value, is: 2)
      check(region.peek(2), is: 71)
      check(region.peek(5), is: 72)
      try check(tracker.collect().runs, is: [2..<3, 5..<6], "what the last of them wrote")
      try check(tracker.collect().isEmpty, "it is pinned still")
      try region.discard(2..<3)
      check(region.peek(2), is: 0)
      try space.close()
    }
  }

  @Test(
    "P6, K5: where other code closed the ring's number, pages stay pinned as long as something may write them",
    .enabled(if: hasRing, "needs io_uring"), arguments: [true, false])
  func lostNumber(arrives: Bool) async {
    await #expect(processExitsWith: .success) { [arrives = arrives as Bool] in
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 8)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(.handlerThread)
      var ends: [CInt] = [0, 0]
      check(unsafe pipe(&ends), is: 0)
      let (reader, writer) = (ends[0], ends[1])
      var buffers = try FixedBuffers(region, [2..<3])
      _ = try buffers.queueRead(from: FileDescriptor(rawValue: reader), at: 0, into: 0, bytes: 0..<16)
      try buffers.submit()
      let number = unsafe cuffd_ring_descriptor(buffers.registration.ring.raw)
      let bytes = [UInt8](repeating: 70, count: 16)
      TestHooks.set(.finishingTransfers) { _ in
        check(close(number), is: 0)
        if arrives { check(unsafe write(writer, bytes, 16), is: 16) }
      }
      var failure: PinError.Code?
      do throws(PinError) { try buffers.close() } catch { failure = error.code }
      check(failure, is: .descriptorLost)
      TestHooks.set(.finishingTransfers, nil)
      if arrives {
        check(region.peek(2), is: 70)
        try check(tracker.collect().runs, is: [2..<3], "what it wrote")
        try check(tracker.collect().isEmpty, "it is pinned still")
        try region.discard(2..<3)
      } else {
        check(errorCode { try region.discard(2..<3) }, is: .pinned)
        try check(tracker.collect().runs, is: [2..<3])
        try check(tracker.collect().runs, is: [2..<3], "it may be written at any moment")
        check(errorCode { try region.unmap() }, is: .pinned)
      }
    }
  }
}
