/// How ``Region/pin(_:_:)`` pins.
public struct PinOptions: OptionSet, Sendable, Hashable {
  public let rawValue: Int
  public init(rawValue: Int) { self.rawValue = rawValue }

  /// The bytes may be written through the pin: sharing is broken first, and the pages count as written until after they are unpinned (P6).
  public static let write = PinOptions(rawValue: 1 << 0)
  /// The pin is meant to last, for a device or a ring: refused for writing where the file must be told of writes (P1).
  public static let longTerm = PinOptions(rawValue: 1 << 1)
  /// A pin for reading gets each page a frame of its own first, whatever the region's ``ReusePolicy`` says.
  public static let unshare = PinOptions(rawValue: 1 << 2)
  /// Never waits for a lock, a try again, a drop or a snapshot without room: `.wouldBlock` instead. Faults may still be taken.
  public static let noWait = PinOptions(rawValue: 1 << 3)
  /// Never takes a fault, and never waits: only what can be pinned as it is.
  public static let fast = PinOptions(rawValue: 1 << 4)

  @inline(__always) var isForWriting: Bool { rawValue & 1 != 0 }
  @inline(__always) var mayWait: Bool { rawValue & (1 << 3 | 1 << 4) == 0 }
}
