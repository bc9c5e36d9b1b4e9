import CTestSupport
import Foundation
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// K5: files, rings and maps of PinKit whose numbers other code has closed and taken.
@Suite("K5: closed descriptors of stores, images and rings") struct ClosedFileTests {
  @Test(
    "A store neither reads nor writes the program's files, says what happened, and leaves them open",
    arguments: [false, true])
  func store(_ isDirect: Bool) async {
    await #expect(processExitsWith: .success) { [isDirect = isDirect as Bool] in
      ct_deadline(240)
      let directory = try ImageDirectory()
      var store: FileStore? = try FileStore(
        path: directory("file"), creating: 64 * 4096, options: .init { $0.direct = isDirect ? .preferred : .never })
      for page in 0..<8 { try store!.put(page, UInt64(page) + 1) }
      check(unsafe ct_seize_descriptors(3, CInt.max, "") > 1, "nothing was seized")
      check(errorCode { try store!.put(2, 77) }, is: .descriptorLost)
      check(errorCode { _ = try store!.get(2) }, is: .descriptorLost)
      let buffer = try PageBuffer(1)
      check(!store!.fillNow(buffer, 0..<1, from: 2..<3), "bytes came out of the program's file")
      check(errorCode { try store!.flush() }, is: .descriptorLost)
      _ = try? store!.pageMakeWritable(30..<31)
      store = nil
      check(ct_check_seized(), is: 0)
      // What was written before is there.
      let again = try FileStore(path: directory("file"))
      for page in 0..<8 { try check(again.get(page), is: UInt64(page) + 1) }
    }
  }

  @Test("An image in the making is given up, and no file of the program's has its pages", arguments: [false, true])
  func image(_ hasRing: Bool) async {
    await #expect(processExitsWith: .success) { [hasRing = hasRing as Bool] in
      ct_deadline(240)
      if !hasRing { check(ct_forbid_io_uring(), is: 0) }
      let directory = try ImageDirectory()
      let source = ArraySource(pages: 3000)
      var calls = 0
      let code = errorCode {
        _ = try ImageWriter.write(source, to: directory("image")) { _ in
          calls += 1
          if calls == 2 { check(unsafe ct_seize_descriptors(3, CInt.max, "") > 0, "nothing was seized") }
          return .proceed
        }
      }
      check(code, is: .descriptorLost)
      check(ct_check_seized(), is: 0)
      try check(ImageWriter.write(source, to: directory("image")).byteCount, is: source.bytes.count)
      check(ct_check_seized(), is: 0)
    }
  }

  @Test("A ring whose number was taken submits nothing, and can be dropped", .enabled(if: hasRing, "needs io_uring"))
  func ring() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let memory = try Mapping(count: 4096)
      let file = try MemoryFile(name: "target", size: 4096)
      do {
        var ring = try SubmissionRing(entries: 8)
        check(ring.queueWrite(to: file.descriptor, at: 0, from: memory.range, userData: 1), is: .queued)
        check(unsafe ct_seize_descriptors(3, CInt.max, "io_uring"), is: 1)
        var code: PinError.Code?
        do throws(PinError) { try ring.submit(waitingFor: 1) } catch { code = error.code }
        check(code, is: .descriptorLost)
      }
      check(ct_check_seized(), is: 0)
    }
  }

  @Test("A batch whose ring was taken meanwhile ends when its operations do", .enabled(if: hasRing, "needs io_uring"))
  func batch() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      var (first, second): ([CInt], [CInt]) = ([0, 0], [0, 0])
      check(unsafe pipe(&first), is: 0)
      check(unsafe pipe(&second), is: 0)
      let memory = try Mapping(count: 8192)
      let (start, reader) = (memory.range.start, Kernel.threadID)
      let ends = (first[1], second[1])
      let other = HostThread {
        // Both are with the kernel once their thread sleeps in io_uring_enter(2).
        let path = "/proc/self/task/\(reader)/syscall"
        while (try? String(contentsOfFile: path, encoding: .utf8))?.hasPrefix("426 ") != true {
          Kernel.pause(nanoseconds: 1_000_000)
        }
        check(unsafe ct_seize_descriptors(5, CInt.max, "io_uring"), is: 1)
        var byte: UInt8 = 7
        check(unsafe write(ends.0, &byte, 1), is: 1)
        Kernel.pause(nanoseconds: 200_000_000)
        check(unsafe write(ends.1, &byte, 1), is: 1)
      }
      var ring = try SubmissionRing(entries: 8)
      var code: PinError.Code?
      do throws(PinError) {
        try ring.readAll([
          .init(descriptor: first[0], offset: 0, memory: AddressRange(start: start, count: 1)),
          .init(descriptor: second[0], offset: 0, memory: AddressRange(start: start + 4096, count: 1)),
        ])
      } catch { code = error.code }
      check(code, is: .descriptorLost)
      check(ring.inFlight, is: 0)
      check(ct_load(UInt64(start) + 4096), is: 7)
      other.join()
      check(ct_check_seized(), is: 0)
    }
  }

  @Test("A store that got the number of another one's closed file is not read in its place")
  func sameNumber() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      _ = ct_handle(SIGSEGV, CInt(ct_siginfo))
      _ = ct_handle(SIGBUS, CInt(ct_siginfo))
      let space = try AddressSpace.forTests()
      let directory = try ImageDirectory()
      func numbers(_ name: String) -> Set<CInt> {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
        return Set(
          names.filter { (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\($0)")) == name }
            .compactMap { CInt($0) })
      }
      let first = try FileStore(path: directory("first"), creating: 16 * 4096)
      let region = try space.map(.file(first, fillAround: .exact), pages: 16)
      check(region.peek(0), is: 0)
      let lost = numbers(directory("first"))
      check(lost.count > 0, "the store's numbers were not found")
      for number in lost { close(number) }
      let second = try FileStore(path: directory("second"), creating: 16 * 4096)
      let other = try space.map(.file(second, fillAround: .exact), pages: 16)
      for page in 0..<16 { other.poke(9, page) }
      try other.flush()
      check(!numbers(directory("second")).isDisjoint(with: lost), "the numbers are others: this tests nothing")
      for page in 1..<16 {
        let found = ct_try_load(UInt64(region.addresses.start) + UInt64(page * 4096))
        check(found != 9, "page \(page) has the bytes of another file")
      }
      try? region.unmap()
      try other.unmap()
      try? space.close()
    }
  }

  @Test("What cannot be looked at is PinKit's only where it is a file of a file system that may have failed")
  func failingLook() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let identity = FileIdentity(of: 0)!
      check(ct_fail_fstat(), is: 0)
      check(!identity.isOf(0), "taken for its own")
      check(identity.mayBeOf(0), "a store's file was given up")
    }
  }

  @Test("A filter that kills for kcmp kills nobody where no descriptor was closed")
  func noKcmp() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let tracked = try Tracked(.handlerThread)
      check(ct_die_of_kcmp(), is: 0)
      let looks = Shared()
      TestHooks.set(.watching) { _ in looks.add() }
      while looks.value < 4 { Kernel.pause(nanoseconds: 1_000_000) }
      TestHooks.set(.watching, nil)
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("A tracker whose pagemap was closed opens it again")
  func pagemap() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let tracked = try Tracked(.asynchronous)
      check(unsafe ct_seize_descriptors(3, CInt.max, "/pagemap") > 0, "nothing was seized")
      try tracked.expectExact()
      try tracked.close()
      check(ct_check_seized(), is: 0)
    }
  }

  static let hasRing = (try? SubmissionRing(entries: 1)) != nil
}
