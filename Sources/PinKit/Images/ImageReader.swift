/// Reads the stored pages of an image, block by block, and checks every block before it lets anybody see it.
struct ImageReader: ~Copyable {
  /// A block whose checksum is right; its bytes are good for as long as it is being handed over.
  @unsafe struct Block {
    var runs: [Range<Int>]
    /// The bytes of the runs one after the other; `nil` where all are zeros.
    var bytes: UnsafeRawBufferPointer?
  }

  private let image: SnapshotImage
  private let file: NamedFile
  private let buffers: BlockBuffers
  private var zeros = ZeroChecksums()
  /// The hole that `nextData(from:)` found last: it need not be asked for every piece of it.
  private var hole = 0..<0
  private(set) var bytesRead = 0

  static func open(_ image: SnapshotImage, holdsSecrets: @escaping () -> Bool) throws(PinError) -> ImageReader {
    let file = try NamedFile.open(image.path)
    let attributes = try file.attributes()
    guard attributes.isRegular, attributes.size == image.byteCount else {
      throw .wrongSize(attributes.size, of: image.path, expected: image.byteCount)
    }
    return ImageReader(image, file, try BlockBuffers(holdsSecrets: holdsSecrets))
  }

  private init(_ image: SnapshotImage, _ file: consuming NamedFile, _ buffers: consuming BlockBuffers) {
    self.image = image
    self.file = file
    self.buffers = buffers
  }

  private struct Ahead {
    var index: Int
    var buffer: Int
    var runs: [Range<Int>]
    var hasData: Bool
  }

  /// Hands over the blocks that hold any page of `wanted`, in order.
  mutating func read(
    _ wanted: DirtySet, _ body: (Block, _ bytesRead: Int) throws(PinError) -> Void
  ) throws(PinError) {
    let (checksums, bytesBefore) = (image.header.checksums, bytesRead)
    var transfers = BlockTransfers(.read, file.known, path: image.path)
    var blocks = ImageBlocks(image.storedPages.runs, pageSize: image.pageSize).enumerated().makeIterator()
    var ahead: [Ahead] = []
    var count = 0
    while true {
      while ahead.count < BlockBuffers.count, let (index, runs) = blocks.next() {
        guard runs.contains(where: wanted.intersects) else { continue }
        let buffer = count % BlockBuffers.count
        ahead.append(
          Ahead(index: index, buffer: buffer, runs: runs, hasData: try fetch(runs, into: buffer, &transfers)))
        count += 1
      }
      guard !ahead.isEmpty else { return }
      try transfers.start()
      let block = ahead.removeFirst()
      try transfers.finish(block.buffer)
      bytesRead = bytesBefore + transfers.bytesDone
      let bytes = unsafe UnsafeRawBufferPointer(
        buffers.bytes(block.buffer, count: block.runs.pageTotal * image.pageSize))
      let found = unsafe block.hasData ? Checksum(of: bytes) : zeros.checksum(count: bytes.count)
      guard found == checksums[block.index] else { throw damaged(block, found, hole: !block.hasData) }
      try unsafe body(Block(runs: block.runs, bytes: block.hasData ? bytes : nil), bytesRead)
    }
  }

  /// Begins to read the runs; `false` if the file has holes there only, and nothing is read.
  private mutating func fetch(
    _ runs: [Range<Int>], into buffer: Int, _ transfers: inout BlockTransfers
  ) throws(PinError) -> Bool {
    let pageSize = image.pageSize
    var pieces: [(offset: Int, file: Range<Int>)] = []
    var offset = 0
    for run in runs {
      let file = run.lowerBound * pageSize..<run.upperBound * pageSize
      if !hole.contains(file.lowerBound) { hole = file.lowerBound..<(self.file.nextData(from: file.lowerBound) ?? .max) }
      let start = Swift.max(file.lowerBound, Swift.min(file.upperBound, hole.upperBound / pageSize * pageSize))
      if start < file.upperBound { pieces.append((offset + start - file.lowerBound, start..<file.upperBound)) }
      offset += file.count
    }
    guard !pieces.isEmpty else { return false }
    // What no piece covers is a hole.
    let bytes = unsafe buffers.bytes(buffer, count: offset)
    var done = 0
    for piece in pieces {
      unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[done..<piece.offset]).initializeMemory(
        as: UInt8.self, repeating: 0)
      done = piece.offset + piece.file.count
    }
    unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[done...]).initializeMemory(as: UInt8.self, repeating: 0)
    for piece in pieces {
      try transfers.queue(
        buffer, at: piece.file.lowerBound, buffers.range(buffer, piece.offset, count: piece.file.count))
    }
    return true
  }

  private func damaged(_ block: Ahead, _ found: Checksum, hole: Bool) -> PinError {
    let first = block.runs[0].lowerBound
    let last = block.runs[block.runs.count - 1].upperBound - 1
    return PinError(
      .corruptImage, operation: "verify \(image.path)",
      advice: "Block \(block.index), \(block.runs.pageTotal) pages from \(first) to \(last), has the checksum \(found), and "
        + "\(image.header.checksums[block.index]) was expected: \(hole ? "it is a hole now" : "it was changed or damaged"). "
        + "Take another copy of the image.")
  }
}

extension PinError {
  static func wrongSize(_ size: Int, of path: String, expected: Int) -> PinError {
    PinError(
      .corruptImage, operation: "open \(path)",
      advice: "It has \(size) bytes, and \(expected) were expected: it was cut off or is another file. "
        + "Take another copy of the image.")
  }
}

extension DirtySet {
  /// The pages of `range` that are in the set, as maximal runs. O(log runs), and what it returns.
  func runs(in range: Range<Int>) -> [Range<Int>] {
    var (low, high) = (0, runs.count)
    while low < high {
      let middle = (low + high) / 2
      if runs[middle].upperBound <= range.lowerBound { low = middle + 1 } else { high = middle }
    }
    var found: [Range<Int>] = []
    while low < runs.count, runs[low].lowerBound < range.upperBound {
      let piece = runs[low].clamped(to: range)
      if !piece.isEmpty { found.append(piece) }
      low += 1
    }
    return found
  }

  func intersects(_ range: Range<Int>) -> Bool { !runs(in: range).isEmpty }
}
