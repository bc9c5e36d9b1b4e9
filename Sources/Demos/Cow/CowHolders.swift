internal import PinKit

/// A pin of one page of a pool that can be kept in an array.
final class HeldPin: Sendable {
  let pin: Pin
  init(_ pin: consuming Pin) { self.pin = pin }

  var state: FrameState { pin.frameState(of: pin.pages.lowerBound)! }

  func load<Value: BitwiseCopyable>(as type: Value.Type = Value.self) -> Value {
    unsafe pin.withUnsafeBytes { unsafe $0.load(as: type) }
  }

  func store<Value: BitwiseCopyable>(_ value: Value) throws {
    unsafe try pin.withUnsafeMutableBytes { unsafe $0.storeBytes(of: value, as: Value.self) }
  }
}

/// A lookup's reference that can be kept in an array.
final class HeldReference: Sendable {
  let reference: FrameReference
  init(_ reference: consuming FrameReference) { self.reference = reference }
}
