import CTestSupport
import PinKit

/// The calls that many threads make at once, each by two threads on pages of their own, between two marks: `scripts/shared-words` runs it
/// under a tool that lists every word that is written, and finds those that both threads write.
///
/// A thread's pages lie 64 apart from the other's: an entry of the page table and the word of a frame are eight bytes, and neighbours share a
/// line of the cache.
@main struct HotPaths {
  static let calls = [
    "load", "store", "pin", "pin-for-writing", "pool-pin", "clone-pin", "snapshot-read", "snapshot-read-kept", "mirror",
  ]

  /// Everything that a call needs, in a box that C code hands on.
  @safe final class Scene: @unchecked Sendable {  // each thread has its own pages, and its own half of the buffer
    let plain: Region
    let pool: Region
    let clone: Region
    let snapshot: Snapshot
    let mirror: SecondaryMMU
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 2 << 16, alignment: 4096)

    init(_ space: AddressSpace) throws {
      plain = try space.map(.anonymous, pages: 256)
      pool = try space.map(.pool, pages: 256)
      for page in 0..<256 {
        try plain.store(page, toByteOffset: page * 4096)
        try pool.store(page, toByteOffset: page * 4096)
      }
      // A thread that waits for another to serve its fault holds the one processor that valgrind has.
      snapshot = try plain.snapshot(SnapshotOptions(mechanism: .mprotect))
      clone = try pool.clone(mechanism: .mprotect)
      for page in 0..<256 { try clone.store(-page, toByteOffset: page * 4096) }
      mirror = try SecondaryMMU(pool)
    }

    func run(_ call: Int, _ thread: Int) throws {
      // What a snapshot is owed of is not what is written: the first write of a page is a fault.
      let page = 64 + 64 * thread
      switch call {
      case 0: _ = try plain.load(fromByteOffset: page * 4096, as: UInt64.self)
      case 1: try plain.store(UInt64(call), toByteOffset: (page + 1) * 4096)
      case 2: try plain.pin(page..<page + 1).unpin()
      case 3: try plain.pin(page + 2..<page + 3, .write).unpin()
      case 4: try pool.pin(page..<page + 1, .write).unpin()
      case 5: try clone.pin(page..<page + 1, .write).unpin()
      case 6, 7:
        let target = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[thread << 16..<thread << 16 + 4096])
        // Once from the region, and once from what was kept before the page was written.
        let read = page + (call == 6 ? 0 : 1)
        unsafe try snapshot.copy(read..<read + 1, into: target)
      default: _ = try unsafe mirror.withBytes(of: page, for: .reading) { unsafe $0.load(as: UInt64.self) }
      }
    }
  }

  static func main() throws {
    let scene = try Scene(AddressSpace())
    print("marks \(String(ct_hot_marks(), radix: 16)) calls \(calls.joined(separator: " "))")
    let context = unsafe Unmanaged.passUnretained(scene).toOpaque()
    unsafe ct_hot_run(body, context, CInt(calls.count))
    print("done")
  }

  /// Not of the main actor, as what stands in ``main()`` is.
  nonisolated static let body: @convention(c) (UnsafeMutableRawPointer?, CInt, CInt) -> Void = { context, call, thread in
    let scene = unsafe Unmanaged<Scene>.fromOpaque(context!)
    do { try unsafe scene._withUnsafeGuaranteedRef { try $0.run(Int(call), Int(thread)) } } catch {
      fatalError("call \(call): \(error)")
    }
  }
}
