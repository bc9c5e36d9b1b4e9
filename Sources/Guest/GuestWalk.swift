public import PinKit

/// Numbered stores without end, in an order that everybody can work out: what memory held at one moment tells how far the guest had
/// come, and then what every other word must have held.
///
/// A page has four words that are written. Stores are numbered from 1, and number `n` goes to word `n * hop`, around and around. So a
/// moment is exact if, with `n` the largest number anywhere, each word holds the largest number up to `n` that goes to it.
public struct GuestWalk: Sendable {
  /// The pages it goes through; their count is a power of two.
  public let pages: Range<Int>
  let pageSize: Int
  private let hop: Int
  /// `hop * inverse` is one more than a multiple of the word count.
  private let inverse: Int
  private static let wordsOfAPage = 4

  /// - Parameter hop: Odd, so that every word has its turn.
  public init(_ pages: Range<Int>, pageSize: Int, hop: Int = 0x2545) {
    precondition(!pages.isEmpty && pages.count & (pages.count - 1) == 0 && hop & 1 == 1, "Every word must have its turn.")
    self.pages = pages
    self.pageSize = pageSize
    let words = pages.count * Self.wordsOfAPage
    self.hop = hop & (words - 1)
    var inverse = 1
    for _ in 0..<6 { inverse = inverse &* (2 &- hop &* inverse) & (words - 1) }
    self.inverse = inverse
  }

  /// As many pages of a region, behind those of the machine, as are a power of two.
  public init(in region: Region) {
    let free = region.pageCount - GuestMachine.bootPages(of: region)
    let first = GuestMachine.bootPages(of: region)
    self.init(first..<first + 1 << (Int.bitWidth - 1 - max(1, free).leadingZeroBitCount), pageSize: region.pageSize)
  }

  public var wordCount: Int { pages.count * Self.wordsOfAPage }

  /// In bytes, from the region's start.
  private func offset(_ word: Int) -> Int { pages.lowerBound * pageSize + word * (pageSize / Self.wordsOfAPage) }

  /// The stores `number`, `number + 1` and so on.
  public func stores(from number: UInt64, count: Int) -> GuestStores {
    let word = Int(truncatingIfNeeded: number) &* hop & (wordCount - 1)
    let size = pageSize / Self.wordsOfAPage
    return GuestStores(
      base: pages.lowerBound * pageSize, offset: word * size, stride: hop * size, window: wordCount * size, count: count,
      value: number, step: 1)
  }

  /// What a word holds after the store `latest`.
  public func expected(_ word: Int, after latest: UInt64) -> UInt64 {
    let turn = word * inverse & (wordCount - 1)
    let back = UInt64((Int(truncatingIfNeeded: latest) - turn) & (wordCount - 1))
    return latest > back ? latest - back : 0
  }

  /// The page that a word is in.
  public func page(of word: Int) -> Int { pages.lowerBound + word / Self.wordsOfAPage }

  /// All words, as some memory holds them.
  public func words(of bytes: UnsafeRawBufferPointer) -> [UInt64] {
    (0..<wordCount).map { unsafe bytes.load(fromByteOffset: offset($0), as: UInt64.self) }
  }

  /// All words, as the region holds them now, read one after the other.
  public func words(in region: Region) throws(PinError) -> [UInt64] {
    var words: [UInt64] = []
    for word in 0..<wordCount { words.append(try region.load(fromByteOffset: offset(word), as: UInt64.self)) }
    return words
  }

  /// All words of a snapshot.
  public func words(of snapshot: Snapshot) throws -> [UInt64] {
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: snapshot.pageCount * pageSize, alignment: 8)
    defer { unsafe bytes.deallocate() }
    unsafe try snapshot.copy(0..<snapshot.pageCount, into: bytes)
    return unsafe words(of: UnsafeRawBufferPointer(bytes))
  }

  /// What is wrong with words that are said to be those of one moment, between the numbers `earliest` and `latest`; `nil` if nothing is.
  public func flaw(in words: [UInt64], from earliest: UInt64, to latest: UInt64) -> String? {
    let now = words.max() ?? 0
    if now < earliest { return "it is at store \(now), and \(earliest) was made before" }
    if now > latest { return "it is at store \(now), and \(latest) was the last until after" }
    for (word, held) in words.enumerated() where held != expected(word, after: now) {
      return "at store \(now), page \(page(of: word)) holds \(held) and not \(expected(word, after: now))"
    }
    return nil
  }
}
