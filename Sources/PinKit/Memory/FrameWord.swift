/// The eight bytes that PinKit knows of a frame.
///
///     bits  0..27  references beyond the mappings: 1 for each lookup, 1024 for each pin
///     bits 28..47  mappings beyond those that the extent counts for all its frames; two's complement
///     bits 48..63  flags
///
/// One word, so that freezing a frame is one atomic step (P5), and zero for a frame that nobody has ever done anything special to, so
/// that untouched memory costs nothing.
struct FrameWord: Sendable, Hashable {
  var rawValue: UInt64

  struct Flags: OptionSet, Sendable, Hashable {
    let rawValue: UInt64
    static let locked = Flags(rawValue: 1 << 48)
    static let dirty = Flags(rawValue: 1 << 49)
    static let writeback = Flags(rawValue: 1 << 50)
    static let exclusive = Flags(rawValue: 1 << 51)
    static let sealed = Flags(rawValue: 1 << 52)
    static let frozen = Flags(rawValue: 1 << 53)
    /// Its memory is being given back.
    static let dying = Flags(rawValue: 1 << 54)
    /// Changing hands; together, as an array literal would allocate in a build without optimization.
    static let changing = Flags(rawValue: 1 << 53 | 1 << 54)
    static let changingOrSealed = Flags(rawValue: 1 << 52 | 1 << 53 | 1 << 54)
  }

  private static let extraMask: UInt64 = (1 << 28) - 1
  private static let mappingShift: UInt64 = 28
  private static let mappingMask: UInt64 = ((1 << 20) - 1) << 28
  private static let flagMask: UInt64 = ~((1 << 48) - 1)
  static let maximumExtra = Int(extraMask)
  static let maximumMappings = (1 << 19) - 1

  /// References beyond the mappings.
  var extra: Int {
    get { Int(rawValue & Self.extraMask) }
    set { rawValue = rawValue & ~Self.extraMask | UInt64(newValue) }
  }

  /// Mappings beyond the extent's.
  var mappings: Int {
    get { Int(Int64(bitPattern: rawValue << 16) >> 44) }
    set {
      let field = (UInt64(bitPattern: Int64(newValue)) << Self.mappingShift) & Self.mappingMask
      rawValue = rawValue & ~Self.mappingMask | field
    }
  }

  var flags: Flags {
    get { Flags(rawValue: rawValue & Self.flagMask) }
    set { rawValue = rawValue & ~Self.flagMask | newValue.rawValue }
  }
}
