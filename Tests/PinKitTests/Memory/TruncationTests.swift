import CTestSupport
import CUffd
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// A shared mapping of a file that can be truncated.
struct FileMemory {
  enum Kind: String, Sendable, CaseIterable, CustomTestStringConvertible {
    case memfd, tmpfs, disk
    var testDescription: String { rawValue }
    var mechanisms: [WriteTracking.Mechanism] { self == .disk ? [.mprotect] : Mechanisms.synchronous }
  }

  let descriptor: CInt
  let range: AddressRange

  init(_ kind: Kind, pages: Int) throws {
    switch kind {
    case .memfd: descriptor = unsafe cuffd_memfd("truncated", 1)
    case .tmpfs: descriptor = try Self.file("/dev/shm/pinkit-test-XXXXXX")
    case .disk: descriptor = try Self.file("/tmp/pinkit-test-XXXXXX")
    }
    check(ftruncate(descriptor, pages * 4096), is: 0)
    range = try ForeignMemory.map(pages * 4096, descriptor)
  }

  private static func file(_ template: String) throws -> CInt {
    var path = Array(template.utf8CString)
    let descriptor = unsafe mkstemp(&path)
    try #require(descriptor >= 0)
    unsafe unlink(path)
    return descriptor
  }

  func release() {
    unsafe munmap(UnsafeMutableRawPointer(bitPattern: range.start), range.count)
    close(descriptor)
  }
}

enum Truncation {
  static let pages = 256
  static let rest = 128
  /// Written, and so kept, before the file is truncated.
  static let kept = [130, 131, 200]

  static func expect(_ snapshot: Snapshot, _ note: String) throws {
    try check(snapshot.wrongPages(of: Array(0..<rest) + kept, version: 1), is: [], note)
    // Some were kept along with their neighbours.
    var isGone = 0
    for page in rest..<pages where !kept.contains(page) {
      switch code({ _ = try snapshot.read(page) }) {
      case .inaccessible: isGone += 1
      default: try check(snapshot.wrongPages(of: [page], version: 1), is: [], "\(note), page \(page)")
      }
    }
    check(isGone >= 32, "\(note): \(isGone) pages are gone")
    check(code { _ = try snapshot.readAll() }, is: .inaccessible, note)
    check(snapshot.failure == nil, "\(note): the snapshot is not given up")
  }
}

@Suite("Truncated files under adopted memory", .serialized) struct TruncationTests {
  @Test(
    "K6, W6: a file that is truncated under adopted memory costs a snapshot what is gone, and nobody more",
    arguments: FileMemory.Kind.allCases)
  func truncated(_ kind: FileMemory.Kind) async throws {
    try Test.skip(if: kind == .disk ? ForeignMemory.diskObstacle : nil)
    await #expect(processExitsWith: .success) { [name = kind.rawValue as String] in
      ct_deadline(600)
      let kind = FileMemory.Kind(rawValue: name)!
      for mechanism in kind.mechanisms {
        for sweep in [false, true] {
          let note = "\(kind.rawValue), \(mechanism.rawValue), \(sweep ? "swept" : "not swept")"
          let memory = try FileMemory(kind, pages: Truncation.pages)
          defer { memory.release() }
          let space = try AddressSpace.forTests()
          let region = try space.adopt(memory.range)
          try region.write(version: 1, to: 0..<Truncation.pages)
          let snapshot = try region.snapshot(.init(mechanism: mechanism))
          try region.write(version: 2, to: Truncation.kept)
          check(ftruncate(memory.descriptor, Truncation.rest * 4096), is: 0)
          try Truncation.expect(snapshot, note)
          if sweep {
            let other = try region.snapshot(.init(mechanism: mechanism, sweep: true))
            while other.capturedBytes < Truncation.rest * 4096 { sched_yield() }
            try check(other.wrongPages(of: Array(0..<Truncation.rest), version: 1), is: [], note)
            other.close()
          }
          try region.write(version: 3, to: 0..<Truncation.rest)
          try Truncation.expect(snapshot, "\(note), written")
          withImagePath { path in check(code { _ = try snapshot.write(to: path) }, is: .inaccessible, note) }
          check(
            code { _ = try region.load(fromByteOffset: Truncation.rest * 4096, as: UInt8.self) }, is: .inaccessible, note)
          check(code { try region.store(UInt8(1), toByteOffset: Truncation.rest * 4096) }, is: .inaccessible, note)
          check(code { try region.touch(Truncation.rest) }, is: .inaccessible, note)
          try region.unmap()
          try Truncation.expect(snapshot, "\(note), unmapped")
          snapshot.close()
          try space.close()
        }
      }
    }
  }

  @Test(
    "K6: a file that is truncated while a fault is served gives the writer SIGBUS, and the reader thread goes on",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals"), arguments: Mechanisms.synchronous)
  func truncatedAtFault(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(600)
      check(ct_handle(SIGBUS, 1), is: 0)
      let memory = try FileMemory(.memfd, pages: Truncation.pages)
      defer { memory.release() }
      let space = try AddressSpace.forTests()
      let region = try space.adopt(memory.range)
      try region.write(version: 1, to: 0..<Truncation.pages)
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      let descriptor = memory.descriptor
      TestHooks.set(.deciding) { page in if page == 200 { _ = ftruncate(descriptor, Truncation.rest * 4096) } }
      check(ct_try_store(UInt64(memory.range.start) + 200 * 4096, 9), is: SIGBUS)
      TestHooks.set(.deciding, nil)
      try region.write(version: 2, to: 0..<Truncation.rest)
      try check(snapshot.wrongPages(of: Array(0..<Truncation.rest), version: 1), is: [])
      check(code { _ = try snapshot.read(200) }, is: .inaccessible)
      check(snapshot.failure == nil, "the snapshot is not given up")
      try region.unmap()
      snapshot.close()
      try space.close()
    }
  }
}
