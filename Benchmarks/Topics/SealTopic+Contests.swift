import CFloor
import PinKit
import PinKitCrypto

extension SealTopic {
  enum Way { case byName, byTouching }

  /// A region with a sealer, every page of which has bytes.
  static func pool(pages: Int) throws -> (space: AddressSpace, region: Region) {
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: pages)
    try region.setSealer(AESGCMSealer())
    for page in 0..<pages { try region.store(page, toByteOffset: page * 4096) }
    return (space, region)
  }

  /// Seals pages that are mapped, `stride` at a time; ns a page.
  static func sealing(_ plan: BenchPlan, stride step: Int) throws -> BenchContest {
    let (space, region) = try pool(pages: plan.pages(4096))
    let floor = try FloorPages(pages: region.pageCount)
    return BenchContest {
      try region.makeAccessible(0..<region.pageCount)
      touch(region)
      let start = nanoseconds()
      for first in stride(from: 0, to: region.pageCount, by: step) { try region.seal(first..<first + step) }
      let time = nanoseconds() - start
      guard try region.isSealed(0), try region.isSealed(region.pageCount - 1) else {
        throw BenchFault(description: "pages are not sealed: the figure means nothing")
      }
      _ = space
      return Double(time) / Double(region.pageCount)
    } floor: {
      _ = try floor.open()
      return try floor.seal()
    }
  }

  /// Opens pages so that they can be read, and reads each; ns a page.
  static func opening(_ plan: BenchPlan, _ way: Way) throws -> BenchContest {
    let (space, region) = try pool(pages: plan.pages(4096))
    let floor = try FloorPages(pages: region.pageCount)
    return BenchContest {
      try region.seal(0..<region.pageCount)
      let start = nanoseconds()
      if way == .byName {
        for first in stride(from: 0, to: region.pageCount, by: 256) { try region.makeAccessible(first..<first + 256) }
      }
      touch(region)
      let time = nanoseconds() - start
      let last: Int = try region.load(fromByteOffset: (region.pageCount - 1) * 4096)
      guard last == region.pageCount - 1 else { throw BenchFault(description: "a page has other bytes") }
      _ = space
      return Double(time) / Double(region.pageCount)
    } floor: {
      _ = try floor.seal()
      return try floor.open()
    }
  }

  /// Pin and unpin of a page of a region that has no sealer, as `pin/fast` measures it.
  static func pinning(_ plan: BenchPlan) throws -> BenchContest { try PinTopic.single(plan, .pool, .write) }

  private static func touch(_ region: Region) { touchPages(region.addresses.start, region.pageCount) }

  fileprivate static func touchPages(_ start: UInt, _ count: Int) {
    for page in 0..<count {
      let address = unsafe UnsafePointer<UInt8>(bitPattern: start + UInt(page * 4096))!
      seen &+= Int(unsafe address.pointee)
    }
  }
  // Of the thread that measures alone; keeps the loads from being left out.
  nonisolated(unsafe) private static var storage = 0
  private static var seen: Int {
    get { unsafe storage }
    set { unsafe storage = newValue }
  }

  /// The same cipher on plain memory, and one change of protection for each page.
  private final class FloorPages {
    private let memory: FloorMemory
    private let sealer: AESGCMSealer
    private var records: [UInt8]
    private var isSealed = false

    init(pages: Int) throws {
      memory = FloorMemory(pages: pages, isShared: true)
      sealer = try AESGCMSealer()
      records = [UInt8](repeating: 0, count: pages * AESGCMSealer.recordSize)
    }

    func seal() throws -> Double {
      if isSealed { return 0 }
      isSealed = true
      return try unsafe perform { page, identity, record, address in
        try unsafe sealer.seal(page, identity: identity, record: record)
        return cfloor_forbid_page(address)
      }
    }

    func open() throws -> Double {
      if !isSealed { return 0 }
      isSealed = false
      return try unsafe perform { page, identity, record, address in
        let result = cfloor_allow_page(address)
        try unsafe sealer.open(page, identity: identity, record: UnsafeRawBufferPointer(record))
        return result
      }
    }

    private func perform(
      _ body: (UnsafeMutableRawBufferPointer, PageIdentity, UnsafeMutableRawBufferPointer, UInt64) throws -> CInt
    ) throws -> Double {
      let size = AESGCMSealer.recordSize
      return try unsafe records.withUnsafeMutableBytes { records in
        let start = nanoseconds()
        for page in 0..<memory.pages {
          let address = memory.base + UInt64(page * 4096)
          let bytes = unsafe UnsafeMutableRawBufferPointer(
            start: UnsafeMutableRawPointer(bitPattern: UInt(address))!, count: 4096)
          let record = unsafe UnsafeMutableRawBufferPointer(rebasing: records[page * size..<(page + 1) * size])
          let result = try unsafe body(bytes, PageIdentity(region: 1, page: page, generation: 1), record, address)
          guard result == 0 else { throw BenchFault(description: "mprotect: errno \(-result)") }
        }
        if !isSealed { touchPages(UInt(memory.base), memory.pages) }
        return Double(nanoseconds() - start) / Double(memory.pages)
      }
    }
  }
}
