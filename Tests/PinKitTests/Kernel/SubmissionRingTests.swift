import CUffd
import Foundation
import SystemPackage
import Testing

@testable import PinKit

private let hasRing = (try? SubmissionRing(entries: 1)) != nil
private let page = Memory.pageSize

/// A file without a name in the temporary directory, closed when dropped.
private struct TemporaryFile: ~Copyable {
  let descriptor: CInt
  init(_ content: [UInt8] = [], in directory: String? = nil) throws {
    let directory = directory ?? Capabilities.temporaryDirectory
    descriptor = unsafe directory.withCString { unsafe cuffd_temporary_file($0) }
    try #require(descriptor >= 0)
    try #require(unsafe cuffd_pwrite(descriptor, content, content.count, 0) == content.count)
  }
  deinit { cuffd_close(descriptor) }
  func content(_ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let got = unsafe cuffd_pread(descriptor, &bytes, count, 0)
    return Array(bytes.prefix(max(0, got)))
  }
}

@Suite("SubmissionRing", .enabled(if: hasRing, "needs io_uring"))
final class SubmissionRingTests {
  private let memory: Mapping
  init() throws { memory = try Mapping(count: 64 * page) }

  private func part(_ offset: Int, _ count: Int) -> AddressRange {
    AddressRange(start: memory.range.start + UInt(offset), count: count)
  }

  @Test("a write, a sync and a read complete with their user data and byte counts")
  func roundTrip() throws {
    var ring = try SubmissionRing(entries: 4)
    let file = try TemporaryFile()
    unsafe fill(part(0, page), with: 5)
    #expect(ring.queueWrite(to: file.descriptor, at: 3, from: part(0, page), userData: 11) == .queued)
    #expect(try ring.submit(waitingFor: 1) == 1)
    #expect(ring.completions() == [.init(userData: 11, outcome: .done(bytes: page))])
    #expect(ring.queueSync(file.descriptor, dataOnly: true, userData: 12) == .queued)
    #expect(ring.queueRead(from: file.descriptor, at: 3, into: part(page, page), userData: 13) == .queued)
    #expect(try ring.submit(waitingFor: 2) == 2)
    #expect(
      Set(ring.completions()) == [
        .init(userData: 12, outcome: .done(bytes: 0)), .init(userData: 13, outcome: .done(bytes: page)),
      ])
    #expect(unsafe bytes(part(page, page)) == [UInt8](repeating: 5, count: page))
    #expect(ring.inFlight == 0)
  }

  @Test("a read at the end of the file is short, and behind it empty: results, not errors")
  func shortRead() throws {
    var ring = try SubmissionRing(entries: 4)
    let file = try TemporaryFile([1, 2, 3])
    _ = ring.queueRead(from: file.descriptor, at: 1, into: part(0, 100), userData: 1)
    try ring.submit(waitingFor: 1)
    #expect(ring.nextCompletion()?.outcome == .done(bytes: 2))
    _ = ring.queueRead(from: file.descriptor, at: 3, into: part(0, 100), userData: 2)
    try ring.submit(waitingFor: 1)
    #expect(ring.nextCompletion()?.outcome == .done(bytes: 0))
    #expect(ring.nextCompletion() == nil)
  }

  @Test("a full queue says so, loses nothing, and takes more after a submission")
  func full() throws {
    var ring = try SubmissionRing(entries: 2)
    let file = try TemporaryFile([1, 2, 3, 4])
    for index in 0..<ring.capacity {
      #expect(ring.queueRead(from: file.descriptor, at: index, into: part(index, 1), userData: 0) == .queued)
    }
    #expect(ring.queueRead(from: file.descriptor, at: 2, into: part(2, 1), userData: 0) == .full)
    #expect(ring.queueWrite(to: file.descriptor, at: 2, from: part(2, 1), userData: 0) == .full)
    #expect(ring.queueSync(file.descriptor, userData: 0) == .full)
    #expect(try ring.submit(waitingFor: 1000) == 2)  // no more than are in flight
    #expect(ring.completions().count == 2)
    #expect(ring.queueRead(from: file.descriptor, at: 2, into: part(2, 1), userData: 0) == .queued)
    #expect(ring.discardQueued() == 1)
    #expect(ring.inFlight == 0)
    #expect(try ring.submit(waitingFor: 1) == 0)
  }

  @Test("a batch larger than the queue moves every byte")
  func largeBatch() throws {
    var ring = try SubmissionRing(entries: 4)
    let file = try TemporaryFile()
    let count = 8 * ring.capacity
    for index in 0..<count { unsafe fill(part(index * page, page), with: UInt8(index)) }
    let transfers = { (base: Int) in
      (0..<count).map { index in
        SubmissionRing.Transfer(
          descriptor: file.descriptor, offset: index * page, memory: self.part((base + index) * page, page))
      }
    }
    try ring.writeAll(transfers(0))
    #expect(unsafe file.content(count * page) == bytes(part(0, count * page)))
    try ring.readAll(transfers(count))
    #expect(unsafe bytes(part(count * page, count * page)) == bytes(part(0, count * page)))
    try ring.readAll([])
  }

  @Test("a read past the end of the file fails, or fills with zeros: never old bytes")
  func endOfFile() throws {
    var ring = try SubmissionRing(entries: 4)
    let file = try TemporaryFile([1, 2, 3])
    unsafe fill(part(0, 100), with: 0xee)
    let transfer = SubmissionRing.Transfer(descriptor: file.descriptor, offset: 1, memory: part(0, 5))
    let error = #expect(throws: PinError.self) { try ring.readAll([transfer]) }
    #expect(error?.code == .outOfBounds)
    try ring.readAll([transfer], atEnd: .zeroFill)
    #expect(unsafe bytes(part(0, 6)) == [2, 3, 0, 0, 0, 0xee])
  }

  @Test("short transfers of a pipe are continued until the memory is full")
  func pipe() throws {
    // A pipe hands over at most what one writer put into it: every read below comes back short.
    var ends: [CInt] = [0, 0]
    try #require(unsafe Glibc.pipe(&ends) == 0)
    defer { ends.forEach(cuffd_close) }
    var ring = try SubmissionRing(entries: 4)
    unsafe fill(part(0, 10), with: 3)
    let descriptor = ends[1]
    try #require(unsafe write(descriptor, [1, 1, 1, 1] as [UInt8], 4) == 4)
    _ = ring.queueRead(from: ends[0], at: 0, into: part(0, 10), userData: 0)
    try ring.submit(waitingFor: 1)
    #expect(ring.nextCompletion()?.outcome == .done(bytes: 4))
    try #require(unsafe write(descriptor, [2, 2, 2, 2] as [UInt8], 4) == 4)
    cuffd_close(ends.removeLast())
    let transfer = SubmissionRing.Transfer(descriptor: ends[0], offset: 0, memory: part(4, 6))
    try ring.readAll([transfer], atEnd: .zeroFill)
    #expect(unsafe bytes(part(0, 10)) == [1, 1, 1, 1, 2, 2, 2, 2, 0, 0])
  }

  @Test("a closed descriptor fails its operation, and a batch leaves nothing in flight")
  func badDescriptor() throws {
    var ring = try SubmissionRing(entries: 2)
    _ = ring.queueRead(from: -1, at: 0, into: part(0, 1), userData: 7)
    try ring.submit(waitingFor: 1)
    #expect(ring.nextCompletion() == .init(userData: 7, outcome: .failed(.badFileDescriptor)))

    let file = try TemporaryFile([1, 2, 3, 4])
    let transfers = [file.descriptor, file.descriptor, -1, file.descriptor].enumerated().map {
      SubmissionRing.Transfer(descriptor: $0.element, offset: $0.offset, memory: part($0.offset, 1))
    }
    let error = #expect(throws: PinError.self) { try ring.readAll(transfers) }
    #expect(error?.errno == .badFileDescriptor)
    #expect(ring.inFlight == 0)
    #expect(ring.completions().isEmpty)
    try ring.readAll([transfers[0]])
  }

  @Test("a batch refuses to mix with what the caller queued, and senseless transfers")
  func refusals() throws {
    var ring = try SubmissionRing(entries: 2)
    let file = try TemporaryFile([1])
    let transfer = SubmissionRing.Transfer(descriptor: file.descriptor, offset: 0, memory: part(0, 1))
    _ = ring.queueSync(file.descriptor, userData: 1)
    #expect(throws: PinError.self) { try ring.readAll([transfer]) }
    ring.discardQueued()
    var negative = transfer
    negative.offset = -1
    #expect(throws: PinError.self) { try ring.readAll([negative]) }
    #expect(throws: PinError.self) { _ = try SubmissionRing(entries: 0) }
    #expect(throws: PinError.self) { _ = try SubmissionRing(entries: 1 << 20) }
  }

  @Test("a full file system is out of space", .enabled(if: geteuid() == 0, "needs root to mount a tmpfs"))
  func outOfSpace() throws {
    let directory = "\(Capabilities.temporaryDirectory)/pinkit-full-\(getpid())"
    try #require(unsafe mkdir(directory, 0o700) == 0)
    defer { unsafe rmdir(directory) }
    let options = Array("size=64k".utf8) + [0]
    try #require(unsafe mount("tmpfs", directory, "tmpfs", 0, options) == 0)
    defer { unsafe umount2(directory, CInt(MNT_DETACH)) }
    var ring = try SubmissionRing(entries: 4)
    let file = try TemporaryFile(in: directory)
    let transfers = (0..<32).map {
      SubmissionRing.Transfer(descriptor: file.descriptor, offset: $0 * page, memory: part($0 * page, page))
    }
    let error = #expect(throws: PinError.self) { try ring.writeAll(transfers) }
    #expect(error?.code == .outOfSpace)
    #expect(ring.inFlight == 0)
  }

  @Test("dropping a ring cancels a read that would never end, and nothing writes to its memory afterwards")
  func dropInFlight() throws {
    var ends: [CInt] = [0, 0]
    try #require(unsafe Glibc.pipe(&ends) == 0)
    defer { ends.forEach(cuffd_close) }
    unsafe fill(part(0, 4), with: 9)
    do {
      var ring = try SubmissionRing(entries: 2)
      _ = ring.queueRead(from: ends[0], at: 0, into: part(0, 4), userData: 0)
      try ring.submit()
      #expect(ring.nextCompletion() == nil)
    }
    let descriptor = ends[1]
    try #require(unsafe write(descriptor, [1, 1, 1, 1] as [UInt8], 4) == 4)
    #expect(unsafe bytes(part(0, 4)) == [9, 9, 9, 9])
  }

  @Test("signals do not end a wait")
  func interrupted() async {
    await #expect(processExitsWith: .success) {
      var ends: [CInt] = [0, 0]
      try #require(unsafe Glibc.pipe(&ends) == 0)
      unsafe alarmPipe = ends[1]
      var action = sigaction()
      unsafe action.__sigaction_handler.sa_handler = { _ in
        unsafe alarms += 1
        if unsafe alarms == 5 { _ = unsafe write(alarmPipe, [42] as [UInt8], 1) }
      }
      try #require(unsafe sigaction(SIGALRM, &action, nil) == 0)
      let memory = try Mapping(count: page)
      var ring = try SubmissionRing(entries: 1)
      _ = ring.queueRead(from: ends[0], at: 0, into: memory.range, userData: 0)
      let millisecond = timeval(tv_sec: 0, tv_usec: 1000)
      var timer = itimerval(it_interval: millisecond, it_value: millisecond)
      try #require(unsafe setitimer(CInt(ITIMER_REAL.rawValue), &timer, nil) == 0)
      try ring.submit(waitingFor: 1)
      #expect(ring.nextCompletion()?.outcome == .done(bytes: 1))
    }
  }
}

// Touched by one signal handler, and before it is installed.
nonisolated(unsafe) private var alarms = 0
nonisolated(unsafe) private var alarmPipe: CInt = -1
