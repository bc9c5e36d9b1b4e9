/// What a page holds, all 4096 bytes of it.
enum GupBytes: String, CaseIterable, Sendable {
  case old, first, second
  /// None of these, or a part of one and a part of another.
  case mixed

  /// The bytes: no two pages have the same.
  func page(_ number: Int) -> [UInt8] {
    let line = Array("\(rawValue) of page \(number) ".utf8)
    return (0..<4096).map { line[$0 % line.count] }
  }

  static func pages(_ count: Int, _ content: GupBytes) -> [UInt8] { (0..<count).flatMap(content.page) }

  init(_ bytes: some Collection<UInt8>, page: Int) {
    self = [.old, .first, .second].first { bytes.elementsEqual($0.page(page)) } ?? .mixed
  }

  /// The beginning of a page as text: bytes that are no letters as dots.
  static func text(_ bytes: some Collection<UInt8>, count: Int = 24) -> String {
    String(decoding: bytes.prefix(count).map { (0x20..<0x7f).contains($0) ? $0 : 0x2e }, as: UTF8.self)
  }

  /// In hexadecimal, byte for byte.
  static func dump(_ bytes: some Collection<UInt8>, count: Int = 12) -> String {
    bytes.prefix(count).map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
  }
}
