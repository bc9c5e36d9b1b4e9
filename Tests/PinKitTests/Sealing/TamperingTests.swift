import Testing

@testable import PinKit
@testable import PinKitCrypto

@Suite("Pages that were tampered with") struct TamperingTests {
  private let sealer: AESGCMSealer
  private let page = SealedPage()
  private let plain = randomBytes(4096)

  init() throws {
    sealer = try AESGCMSealer()
    page.content = plain
    try page.seal(sealer)
  }

  /// Expects the page, changed as it is now, to stay closed and to stay as it is.
  private func expectTampered(_ comment: Comment) {
    let (bytes, record) = (page.content, page.recordContent)
    #expect(page.codeOfOpening(sealer) == .tampered, comment)
    #expect(page.content == bytes, "\(comment): the sealed bytes have changed")
    #expect(page.recordContent == record, "\(comment): the record has changed")
  }

  private func expectOpens() throws {
    try page.open(sealer)
    #expect(page.content == plain)
  }

  @Test("S5: a changed bit of the bytes, wherever it is, keeps the page closed and as it is")
  func bytes() throws {
    for offset in Array(stride(from: 0, to: 4096, by: 61)) + [4095] {
      let bit = UInt8(1) << UInt8(offset % 8)
      unsafe page.bytes[offset] ^= bit
      expectTampered("byte \(offset)")
      unsafe page.bytes[offset] ^= bit
    }
    try expectOpens()
  }

  @Test("S5: a changed bit of the nonce or of the tag does")
  func record() throws {
    for bit in 0..<AESGCMSealer.recordSize * 8 {
      unsafe page.record[bit / 8] ^= 1 << UInt8(bit % 8)
      expectTampered("bit \(bit) of the record")
      unsafe page.record[bit / 8] ^= 1 << UInt8(bit % 8)
    }
    try expectOpens()
  }

  @Test("S5: another region, page or generation does")
  func identity() throws {
    let right = page.identity
    for bit in 0..<64 {
      page.identity.region ^= 1 << UInt64(bit)
      expectTampered("bit \(bit) of the region")
      page.identity = right
      page.identity.page ^= 1 << bit
      expectTampered("bit \(bit) of the page")
      page.identity = right
      page.identity.generation ^= 1 << UInt64(bit)
      expectTampered("bit \(bit) of the generation")
      page.identity = right
    }
    page.identity = PageIdentity(region: 2, page: 1, generation: 3)
    expectTampered("region and page changed over")
    page.identity = right
    try expectOpens()
  }

  @Test("S5: two pages that changed places do, with their records or without")
  func swapped() throws {
    let other = SealedPage(identity: PageIdentity(region: 1, page: 3, generation: 3))
    try other.seal(sealer)
    let mine = (page.content, page.recordContent)
    (page.content, page.recordContent) = (other.content, other.recordContent)
    expectTampered("bytes and record of another page")
    page.recordContent = mine.1
    expectTampered("bytes of another page")
    page.content = mine.0
    try expectOpens()
  }

  @Test("S5: an earlier state of the page, with its record, does")
  func replayed() throws {
    let old = (page.content, page.recordContent)
    try page.open(sealer)
    unsafe page.bytes[0] ^= 1
    page.identity.generation += 1
    try page.seal(sealer)
    let new = (page.content, page.recordContent)
    (page.content, page.recordContent) = old
    expectTampered("the older bytes and record")
    (page.content, page.recordContent) = new
    try page.open(sealer)
    unsafe page.bytes[0] ^= 1
    #expect(page.content == plain)
  }

  @Test("S5: a part of the page, or another sealer's page, does")
  func otherwise() throws {
    let half = unsafe UnsafeMutableRawBufferPointer(rebasing: page.bytes[..<2048])
    let before = page.content
    let code = thrown { () throws(PinError) in
      try unsafe sealer.open(half, identity: page.identity, record: UnsafeRawBufferPointer(page.record))
    }
    #expect(code == .tampered)
    #expect(page.content == before)
    let stranger = try AESGCMSealer()
    #expect(page.codeOfOpening(stranger) == .tampered)
    #expect(page.content == before)
    try expectOpens()
  }
}
