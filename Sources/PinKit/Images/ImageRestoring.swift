/// Where the pages of a chain of images go.
protocol ImageTarget {
  /// Consecutive pages and their bytes.
  mutating func put(_ pages: Range<Int>, _ bytes: UnsafeRawBufferPointer) throws(PinError)
  mutating func putZeros(_ pages: Range<Int>) throws(PinError)
  /// Whether the pages may be sealed ones: what they were read into is wiped.
  var holdsSecrets: () -> Bool { get }
}

extension ImageTarget {
  var holdsSecrets: () -> Bool { { false } }
}

/// Puts a chain of images together.
///
/// Every image is read twice. The first pass checks all of all of them, and nothing has happened if it finds anything. The second
/// reads only the blocks that hold the newest version of a page, checks those again, since files can change in between, and hands
/// every page over once.
enum ImageRestoring {
  static func run(
    _ chain: [SnapshotImage], into target: inout some ImageTarget, operation: String, cancelsLate: Bool,
    _ progress: (ImageProgress) -> ImageProgress.Decision
  ) throws(PinError) {
    try SnapshotImage.validate(chain)
    let newest = SnapshotImage.newestPages(of: chain)
    var tally = ImageTally(
      operation: operation, pagesTotal: chain.reduce(0) { $0 + $1.storedPages.count } + newest.reduce(0) { $0 + $1.count })
    try tally.begin(progress)
    for image in chain { try image.verify(&tally, holdsSecrets: target.holdsSecrets, progress) }

    for (image, wanted) in zip(chain, newest) where !wanted.isEmpty {
      var reader = try ImageReader.open(image, holdsSecrets: target.holdsSecrets)
      let bytesBefore = tally.state.bytesTransferred
      unsafe try reader.read(wanted) { (block, bytesRead) throws(PinError) in
        let pages = unsafe try apply(block, wanted, pageSize: image.pageSize, &target)
        do throws(PinError) {
          try tally.add(pages: pages, bytes: bytesBefore + bytesRead, progress)
        } catch {
          if cancelsLate { throw error }
        }
      }
    }
  }

  /// Returns how many pages that were.
  private static func apply(
    _ block: ImageReader.Block, _ wanted: DirtySet, pageSize: Int, _ target: inout some ImageTarget
  ) throws(PinError) -> Int {
    var (offset, pages) = (0, 0)
    for run in unsafe block.runs {
      for piece in wanted.runs(in: run) {
        pages += piece.count
        guard let bytes = unsafe block.bytes else {
          try target.putZeros(piece)
          continue
        }
        func bytesOf(_ pages: Range<Int>) -> UnsafeRawBufferPointer {
          let start = offset + (pages.lowerBound - run.lowerBound) * pageSize
          return unsafe UnsafeRawBufferPointer(rebasing: bytes[start..<start + pages.count * pageSize])
        }
        var page = piece.lowerBound
        while page < piece.upperBound {
          let isZero = unsafe bytesOf(page..<page + 1).isZero
          var end = page + 1
          while end < piece.upperBound, unsafe bytesOf(end..<end + 1).isZero == isZero { end += 1 }
          if isZero { try target.putZeros(page..<end) } else { try unsafe target.put(page..<end, bytesOf(page..<end)) }
          page = end
        }
      }
      offset += run.count * pageSize
    }
    return pages
  }
}
