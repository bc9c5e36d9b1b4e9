/// Where in the region the index keeps what; sized so that it always fits.
///
/// ```
/// buckets   a 32-bit offset of the first entry of each chain
/// words     entries: next, count, first chunk, last chunk, length, the word; in order of first appearance
/// postings  chunks of 15 postings: next, used, then (document, offset) pairs; each writer fills extents of its own
/// ```
/// All links are byte offsets from the start of the region; 0 means none.
struct TrackIndexLayout: Sendable, Hashable {
  struct Area: Sendable, Hashable {
    var name: String
    var pages: Range<Int>
  }

  static let entryHeader = 24
  static let chunkSize = 128
  static let postingsPerChunk = 15

  let pageSize: Int
  let bucketCount: Int
  let areas: [Area]
  /// In bytes; a multiple of ``chunkSize``.
  let extentSize: Int
  var pageCount: Int { areas[2].pages.upperBound }
  var entries: Range<Int> { bytes(areas[1]) }
  var postings: Range<Int> { bytes(areas[2]) }

  /// For `copies` copies of the corpus, indexed by so many writers.
  init(corpus: TrackCorpus, copies: Int, writers: Int, pageSize: Int) {
    self.pageSize = pageSize
    var bucketCount = 64
    while bucketCount < corpus.counts.count { bucketCount *= 2 }
    self.bucketCount = bucketCount
    let entryBytes = corpus.counts.keys.reduce(0) { $0 + Self.entrySize(of: $1.count) }
    let chunks = corpus.counts.values.reduce(0) { sum, count in
      sum + (count * copies + Self.postingsPerChunk - 1) / Self.postingsPerChunk
    }
    func pages(_ bytes: Int) -> Int { (bytes + pageSize - 1) / pageSize }
    let chunkPages = pages(chunks * Self.chunkSize)
    let extentPages = max(1, chunkPages / (4 * writers))
    extentSize = extentPages * pageSize
    // Every writer may have begun an extent that it does not fill.
    let postingPages = ((chunkPages + extentPages - 1) / extentPages + writers) * extentPages
    var start = 0
    let sizes = [("buckets", pages(bucketCount * 4)), ("words", pages(entryBytes)), ("postings", postingPages)]
    areas = sizes.map { name, count in
      defer { start += count }
      return Area(name: name, pages: start..<start + count)
    }
  }

  static func entrySize(of length: Int) -> Int { (entryHeader + length + 7) & ~7 }

  private func bytes(_ area: Area) -> Range<Int> {
    area.pages.lowerBound * pageSize..<area.pages.upperBound * pageSize
  }

  /// The area of a page, for messages.
  func name(of page: Int) -> String { areas.first { $0.pages.contains(page) }?.name ?? "?" }
}
