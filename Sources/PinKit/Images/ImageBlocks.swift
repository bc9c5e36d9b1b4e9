internal import Synchronization

/// Cuts the stored pages of an image, in order, into the blocks that have checksums: each but the last holds ``size`` bytes.
struct ImageBlocks: Sequence, IteratorProtocol {
  /// In bytes. Every page size that an image can have divides it.
  static let size = 4 << 20

  private let runs: [Range<Int>]
  private let pagesPerBlock: Int
  private var run = 0
  private var page: Int

  init(_ runs: [Range<Int>], pageSize: Int) {
    self.runs = runs
    pagesPerBlock = Self.size / pageSize
    page = runs.first?.lowerBound ?? 0
  }

  /// How many blocks so many stored pages make.
  static func count(pages: Int, pageSize: Int) -> Int {
    let pagesPerBlock = size / pageSize
    return pages / pagesPerBlock + (pages % pagesPerBlock == 0 ? 0 : 1)
  }

  /// The runs of pages of the next block.
  mutating func next() -> [Range<Int>]? {
    var block: [Range<Int>] = []
    var room = pagesPerBlock
    while room > 0, run < runs.count {
      let piece = page..<Swift.min(page + room, runs[run].upperBound)
      block.append(piece)
      room -= piece.count
      page = piece.upperBound
      if page == runs[run].upperBound {
        run += 1
        if run < runs.count { page = runs[run].lowerBound }
      }
    }
    return block.isEmpty ? nil : block
  }
}

extension Sequence<Range<Int>> {
  var pageTotal: Int { reduce(0) { $0 + $1.count } }
}

/// A few buffers of one block each, page-aligned.
struct BlockBuffers: ~Copyable {
  /// One is filled and hashed by the CPU while the others are on their way.
  static let count = 4
  private let memory: Mapping
  private let holdsSecrets: () -> Bool
  /// The most that was asked for of any.
  private let used = Atomic<Int>(0)

  /// - Parameter holdsSecrets: Asked when the buffers are freed: whether they are wiped first.
  init(holdsSecrets: @escaping () -> Bool) throws(PinError) {
    memory = try Mapping(count: Self.count * ImageBlocks.size)
    self.holdsSecrets = holdsSecrets
    // Without these a child or a core dump has pages that the region keeps out of both.
    for advice in [Memory.Advice.dontFork, .dontDump] { try? Memory.advise(memory.range, advice) }
  }

  deinit {
    if holdsSecrets() {
      for index in 0..<Self.count { Memory.wipe(range(index, count: used.load(ordering: .relaxed))) }
    }
    TestHooks.reach(.freeingBuffers, page: Int(memory.range.start))
  }

  func range(_ index: Int, _ offset: Int = 0, count: Int) -> AddressRange {
    AddressRange(start: memory.range.start + UInt(index * ImageBlocks.size + offset), count: count)
  }

  /// The first `count` bytes of a buffer, good for as long as the buffers are.
  func bytes(_ index: Int, count: Int) -> UnsafeMutableRawBufferPointer {
    if count > used.load(ordering: .relaxed) { used.store(count, ordering: .relaxed) }
    return unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: range(index, count: count).start), count: count)
  }
}

/// The checksums of blocks that are all zeros, which a sparse image has many of.
struct ZeroChecksums {
  private var known: [Int: Checksum] = [:]

  /// Of a block of so many bytes.
  mutating func checksum(count: Int) -> Checksum {
    if let found = known[count] { return found }
    let zeros = [UInt8](repeating: 0, count: count)
    let made = unsafe zeros.withUnsafeBytes { unsafe Checksum(of: $0) }
    known[count] = made
    return made
  }
}
