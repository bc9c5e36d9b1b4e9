internal import Foundation
internal import Glibc
internal import PinKit

/// A copy of a region in ordinary memory, kept up to date from dirty sets alone: what an incremental checkpoint or a live
/// migration would have on the other side.
@safe final class TrackShadow {
  private let region: Region
  private let bytes: UnsafeMutableRawPointer
  /// `/proc/self/mem`, or -1.
  private let memory: CInt
  private var pageSize: Int { region.pageSize }

  /// The region must read as zeros.
  init(of region: Region) {
    self.region = region
    memory = unsafe Glibc.open("/proc/self/mem", O_RDONLY | O_CLOEXEC)
    unsafe bytes = .allocate(byteCount: region.addresses.count, alignment: 4096)
    unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0, count: region.addresses.count)
  }

  deinit {
    if memory >= 0 { Glibc.close(memory) }
    unsafe bytes.deallocate()
  }

  /// Copies pages while others write them; false if the kernel does not allow it.
  ///
  /// The kernel copies: loads that race with stores have no meaning in Swift, a system call beside them has. A page may come out
  /// torn; the next dirty set must name it then.
  func copyBesideWriters(_ pages: DirtySet) -> Bool {
    for run in pages.runs {
      let (offset, count) = (run.lowerBound * pageSize, run.count * pageSize)
      guard unsafe pread(memory, bytes + offset, count, off_t(region.addresses.start) + offset) == count else {
        return false
      }
    }
    return true
  }

  /// Copies pages. Nobody may write meanwhile.
  func copy(_ pages: DirtySet) throws {
    try unsafe region.withUnsafeMutableBytes { source in
      for run in pages.runs {
        let offset = run.lowerBound * pageSize
        unsafe (bytes + offset).copyMemory(from: source.baseAddress! + offset, byteCount: run.count * pageSize)
      }
    }
  }

  /// The pages that differ from the region. Nobody may write meanwhile.
  func differing(in pages: Range<Int>? = nil) throws -> DirtySet {
    try unsafe region.withUnsafeMutableBytes { source in
      var runs: [Range<Int>] = []
      for page in pages ?? 0..<region.pageCount {
        let offset = page * pageSize
        if unsafe memcmp(bytes + offset, source.baseAddress! + offset, pageSize) != 0 { runs.append(page..<page + 1) }
      }
      return DirtySet(pageCount: region.pageCount, runs: runs)
    }
  }
}
