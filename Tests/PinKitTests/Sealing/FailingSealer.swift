import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// A sealer that fails at one page, as often as it is asked, until it is told otherwise.
final class FailingSealer: PageSealer {
  private struct Failure {
    var page: Int
    var code: PinError.Code
  }
  private let failure = Mutex<Failure?>(nil)
  let inner = RecordingSealer()
  var recordSize: Int { inner.recordSize }

  func fail(at page: Int, _ code: PinError.Code) { failure.withLock { $0 = Failure(page: page, code: code) } }
  func recover() { failure.withLock { $0 = nil } }

  private func failIfTold(_ identity: PageIdentity) throws(PinError) {
    let failure = failure.withLock { $0 }
    if let failure, failure.page == identity.page {
      throw PinError(failure.code, operation: "transform page \(identity.page)", advice: "It was told to.")
    }
  }

  func seal(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeMutableRawBufferPointer
  ) throws(PinError) {
    try failIfTold(identity)
    try unsafe inner.seal(page, identity: identity, record: record)
  }

  func open(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeRawBufferPointer
  ) throws(PinError) {
    try failIfTold(identity)
    try unsafe inner.open(page, identity: identity, record: record)
  }
}

/// A region whose pages say which they are, at three places.
struct PatternedRegion {
  let space: AddressSpace
  let region: Region
  let sealer: FailingSealer
  private static let places = [0, 2048, 4095]

  init(pages: Int) throws {
    space = try AddressSpace()
    region = try space.map(.pool, pages: pages)
    sealer = FailingSealer()
    try region.setSealer(sealer)
    for page in 0..<pages { for place in Self.places { region.poke(Self.byte(page, place), page, at: place) } }
  }

  static func byte(_ page: Int, _ place: Int) -> UInt8 { UInt8(truncatingIfNeeded: page &* 7 &+ place &+ 1) }

  var sealedPages: [Int] { (0..<region.pageCount).filter { (try? region.isSealed($0)) == true } }

  /// Whether a pointer finds in all of `pages` what was written there.
  func isIntact(_ pages: Range<Int>) -> Bool {
    pages.allSatisfy { page in Self.places.allSatisfy { region.peek(page, at: $0) == Self.byte(page, $0) } }
  }

  /// Whether somebody holds on to a frame of `pages`.
  func isHeld(_ pages: Range<Int>) -> Bool { pages.contains { (try? region.frameState($0).counts.isFrozen) != false } }
}
