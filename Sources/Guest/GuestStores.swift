/// What a guest is told to do: a number of stores of eight bytes each, one after the other, at places that lie a stride apart.
///
/// All of it in bytes of guest-physical memory, which is the region's.
public struct GuestStores: Sendable, Hashable {
  /// Where the window begins.
  public var base: Int
  /// Of the first store, from the base.
  public var offset: Int
  /// From one store to the next.
  public var stride: Int
  /// The size of the window, a power of two: offsets wrap around in it. `nil`: they do not.
  public var window: Int?
  /// How many stores.
  public var count: Int
  /// What the first one stores.
  public var value: UInt64
  /// What is added to the value after each.
  public var step: UInt64 = 0

  public init(base: Int, offset: Int, stride: Int, window: Int?, count: Int, value: UInt64, step: UInt64 = 0) {
    self.base = base
    self.offset = offset
    self.stride = stride
    self.window = window
    self.count = count
    self.value = value
    self.step = step
  }

  /// The same value at the start of every page, or of every other one.
  public init(_ value: UInt64, to pages: Range<Int>, every stride: Int = 1, pageSize: Int) {
    self.init(
      base: pages.lowerBound * pageSize, offset: 0, stride: stride * pageSize, window: nil,
      count: stride > 0 ? (pages.count + stride - 1) / stride : 0, value: value)
  }

  /// Whether every store is aligned and lies inside those bytes.
  func fits(_ bytes: Range<Int>) -> Bool {
    guard count >= 1, stride >= 0, offset >= 0, (base | offset | stride) % 8 == 0, base >= bytes.lowerBound else {
      return false
    }
    if let window {
      return window >= 8 && window & (window - 1) == 0 && offset < window && window <= bytes.upperBound - base
    }
    let (span, isTooLarge) = (count - 1).multipliedReportingOverflow(by: stride)
    return !isTooLarge && offset <= bytes.upperBound - base - 8 && span <= bytes.upperBound - base - 8 - offset
  }
}
