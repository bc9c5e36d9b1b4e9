internal import PinKit

/// What the demo writes: pages of which every word says which page it is, and of which round.
enum FileContent {
  static func word(_ round: Int, _ page: Int) -> UInt64 { UInt64(round) << 20 | UInt64(page) }

  static func page(_ round: Int, _ page: Int) -> [UInt8] {
    let words = [UInt64](repeating: word(round, page), count: 512)
    return unsafe words.withUnsafeBytes { unsafe [UInt8]($0) }
  }

  static func pages(_ round: Int, _ count: Int) -> [UInt8] { (0..<count).flatMap { page(round, $0) } }

  /// Which round the page is of; `nil` if its words differ, or are of another page.
  static func round(_ bytes: some Collection<UInt8>, of page: Int) -> Int? {
    guard bytes.count == 4096 else { return nil }
    let bytes = Array(bytes)
    let word = (0..<8).reduce(UInt64(0)) { $0 | UInt64(bytes[$1]) << (8 * UInt64($1)) }
    let round = Int(word >> 20)
    return word & 0xfffff == UInt64(page) && bytes == self.page(round, page) ? round : nil
  }

  /// Of every page of a region, as a program reads it.
  static func rounds(of region: Region) throws -> [Int?] {
    try (0..<region.pageCount).map { page in
      var bytes = [UInt8](repeating: 0, count: 4096)
      unsafe try bytes.withUnsafeMutableBytes { unsafe try region.copy(fromByteOffset: page * 4096, into: $0) }
      return round(bytes, of: page)
    }
  }

  /// The first word of a page, through a pointer, as most programs read: with a fault where the page is not there.
  static func touch(_ page: Int, of region: Region) throws -> UInt64 {
    unsafe try region.withUnsafeMutableBytes { unsafe $0.load(fromByteOffset: page * 4096, as: UInt64.self) }
  }

  /// Of every page of a file.
  static func rounds(of file: DemoFile, pages: Int) throws -> [Int?] {
    try (0..<pages).map { round(try file.page($0), of: $0) }
  }

  static func write(_ round: Int, _ page: Int, to region: Region) throws(PinError) {
    let bytes = self.page(round, page)
    let span = bytes.span
    try unsafe span.withUnsafeBytes { source throws(PinError) in try unsafe region.copy(source, toByteOffset: page * 4096) }
  }
}
