extension Pin {
  /// The bytes, for as long as the pin lives. Others may change them meanwhile.
  public var bytes: RawSpan {
    @_lifetime(borrow self)
    get {
      let pointer = unsafe UnsafeRawPointer(bitPattern: start)!
      return unsafe _overrideLifetime(RawSpan(_unsafeStart: pointer, byteCount: byteCount), borrowing: self)
    }
  }

  /// The bytes for writing, of a pin with ``PinOptions/write``; a pin for reading has none, and its span is empty.
  public var mutableBytes: MutableRawSpan {
    @_lifetime(&self)
    mutating get {
      let pointer = unsafe UnsafeMutableRawPointer(bitPattern: start)!
      let count = options.isForWriting ? byteCount : 0
      return unsafe _overrideLifetime(MutableRawSpan(_unsafeStart: pointer, byteCount: count), mutating: &self)
    }
  }

  /// Calls `body` with the bytes; the pointer is valid until the pin goes.
  public func withUnsafeBytes<Result>(_ body: (UnsafeRawBufferPointer) throws -> Result) rethrows -> Result {
    try unsafe body(UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: start), count: byteCount))
  }

  /// The same for writing.
  ///
  /// - Throws: ``PinError`` `.accessDenied` through a pin for reading; what `body` throws.
  public func withUnsafeMutableBytes<Result>(_ body: (UnsafeMutableRawBufferPointer) throws -> Result) throws -> Result {
    guard options.isForWriting else {
      throw PinError(
        .accessDenied, operation: "write through a pin", range: regionAddresses,
        advice: "Pin the pages with .write.")
    }
    return try unsafe body(
      UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: start), count: byteCount))
  }
}
