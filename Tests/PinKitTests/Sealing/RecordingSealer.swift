import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// A sealer that is easily seen through: it masks bytes, checks a sum, and writes down what it does.
final class RecordingSealer: PageSealer {
  enum Step: Hashable {
    case seal(Int), open(Int)
  }
  private let log = Mutex<[Step]>([])
  private let isBroken = Mutex(false)
  private let hook = Mutex(Hook())
  /// Called before a page is sealed, with its number.
  func onSeal(_ body: @escaping @Sendable (Int) -> Void) { hook.withLock { $0 = Hook(body: body) } }

  /// A closure by itself would be wrapped once more each time it is taken out of the mutex.
  private struct Hook: Sendable {
    var body: @Sendable (Int) -> Void = { _ in }
  }
  static let mask: UInt64 = 0xA5A5_5A5A_A5A5_5A5A

  var steps: [Step] { log.withLock { $0 } }
  func forget() { log.withLock { $0 = [] } }
  func breakDown(_ broken: Bool) { isBroken.withLock { $0 = broken } }
  let recordSize = 16

  private func transform(_ page: UnsafeMutableRawBufferPointer, _ key: UInt64) -> UInt64 {
    var sum: UInt64 = key
    for offset in stride(from: 0, to: page.count, by: 8) {
      let word = unsafe page.load(fromByteOffset: offset, as: UInt64.self)
      unsafe page.storeBytes(of: word ^ key, toByteOffset: offset, as: UInt64.self)
      sum = (sum ^ min(word, word ^ key)) &* 0x100_0000_01B3 &+ max(word, word ^ key)
    }
    return sum
  }

  private func key(_ identity: PageIdentity) -> UInt64 {
    Self.mask ^ identity.region << 48 ^ UInt64(identity.page) << 24 ^ identity.generation
  }

  func seal(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeMutableRawBufferPointer
  ) throws(PinError) {
    if isBroken.withLock({ $0 }) { throw PinError(.keyGone, operation: "seal", advice: "It was told to.") }
    hook.withLock { $0 }.body(identity.page)
    log.withLock { $0.append(.seal(identity.page)) }
    let sum = unsafe transform(page, key(identity))
    unsafe record.storeBytes(of: sum, as: UInt64.self)
  }

  func open(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeRawBufferPointer
  ) throws(PinError) {
    if isBroken.withLock({ $0 }) { throw PinError(.keyGone, operation: "open", advice: "It was told to.") }
    log.withLock { $0.append(.open(identity.page)) }
    let sum = unsafe transform(page, key(identity))
    if unsafe record.loadUnaligned(as: UInt64.self) == sum { return }
    _ = unsafe transform(page, key(identity))
    throw PinError(.tampered, operation: "open", advice: "Somebody changed it.")
  }
}

extension Region {
  /// The bytes of a page's frame as they are, sealed or not, without going through any door.
  func rawByte(_ page: Int, at offset: Int = 0) throws -> UInt8 {
    let frames = try #require(frames)
    return ct_load(UInt64(frames.directAddress(of: page)) + UInt64(offset))
  }
  func tamper(_ page: Int, at offset: Int = 0) throws {
    let frames = try #require(frames)
    let address = UInt64(frames.directAddress(of: page)) + UInt64(offset)
    ct_store(address, ct_load(address) ^ 1)
  }
}
