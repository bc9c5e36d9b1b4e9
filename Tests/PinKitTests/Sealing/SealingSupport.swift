import CTestSupport
import Testing

@testable import PinKit
@testable import PinKitCrypto

/// A page and what a sealer keeps beside it, as the owner of sealed pages has them.
@safe final class SealedPage {
  let bytes: UnsafeMutableRawBufferPointer
  let record: UnsafeMutableRawBufferPointer
  var identity: PageIdentity
  let address: AddressRange

  init(count: Int = 4096, identity: PageIdentity = PageIdentity(region: 1, page: 2, generation: 3)) {
    let mapped = ct_map_anonymous(UInt64(count), 0)
    address = AddressRange(start: UInt(mapped), count: count)
    unsafe bytes = UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: UInt(mapped)), count: count)
    unsafe record = .allocate(byteCount: AESGCMSealer.recordSize, alignment: 1)
    self.identity = identity
  }

  deinit {
    Mapping.unmap(address)
    unsafe record.deallocate()
  }

  var content: [UInt8] {
    get { unsafe Array(bytes) }
    set { unsafe bytes.copyBytes(from: newValue) }
  }
  var recordContent: [UInt8] {
    get { unsafe Array(record) }
    set { unsafe record.copyBytes(from: newValue) }
  }

  func seal(_ sealer: any PageSealer) throws(PinError) {
    try unsafe sealer.seal(bytes, identity: identity, record: record)
  }
  func open(_ sealer: any PageSealer) throws(PinError) {
    try unsafe sealer.open(bytes, identity: identity, record: UnsafeRawBufferPointer(record))
  }

  /// What opening it throws, if it does.
  func codeOfOpening(_ sealer: any PageSealer) -> PinError.Code? { thrown(by: { () throws(PinError) in try open(sealer) }) }
  func codeOfSealing(_ sealer: any PageSealer) -> PinError.Code? { thrown(by: { () throws(PinError) in try seal(sealer) }) }
}

/// The code of what `body` throws, if it does.
func thrown(by body: () throws(PinError) -> Void) -> PinError.Code? {
  do throws(PinError) { try body() } catch { return error.code }
  return nil
}

func randomBytes(_ count: Int) -> [UInt8] {
  var generator = SystemRandomNumberGenerator()
  return (0..<count).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
}
