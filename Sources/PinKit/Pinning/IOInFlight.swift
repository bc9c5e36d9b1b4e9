/// Pages that the kernel may write at any moment, for an operation that the program submits itself (P9).
///
/// The kernel pins the pages of an O_DIRECT read, of libaio or of io_uring when it is submitted, and writes them when the device is done: no fault says
/// so, and protecting them meanwhile does not reach it. So a collection or a snapshot in between would know nothing of the bytes. Between
/// ``Region/beginIO(into:)`` and ``complete()`` the pages count as pinned for writing (P6).
///
/// Noncopyable; dropping it completes it. It keeps the memory of its pages, as a ``Pin`` does.
@safe public struct IOInFlight: ~Copyable, Sendable {
  private let pin: Pin

  @inline(__always) init(_ pin: consuming Pin) { self.pin = pin }

  public var pages: Range<Int> { pin.pages }

  /// Calls `body` with the bytes that the operation is to fill; the pointer is valid until it is completed. They are contiguous: of `.pool`
  /// memory the pool's own mapping, which nothing ever protects, of other memory the region's.
  public func withUnsafeMutableBytes<Result>(_ body: (UnsafeMutableRawBufferPointer) throws -> Result) rethrows -> Result {
    try unsafe body(
      UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: pin.start), count: pin.byteCount))
  }

  /// Says that the kernel is done: after the operation's completion was seen, never before. The same happens when the value is dropped.
  @inline(__always) public consuming func complete() {}
}

extension Region {
  /// Says that the kernel is about to write `pages`, before an operation is submitted that does.
  ///
  /// ```swift
  /// let io = try region.beginIO(into: 8..<16)
  /// try ring.submitRead(io)
  /// // … later, on any thread, with its completion in hand:
  /// io.complete()
  /// ```
  ///
  /// Until ``IOInFlight/complete()``:
  ///
  /// - Every collection has the pages, and so has the first one after it: what the device wrote by then is visible to who copies them after
  ///   that one (W5).
  /// - A snapshot copies them at its moment, with whatever of the operation has arrived by then: all, nothing, or a part, whose boundary may
  ///   lie anywhere. What arrives later changes nothing in it (W6). Who needs one or the other waits for the completion first.
  /// - A clone gets copies, and nothing drops, moves or reclaims the pages (P4).
  /// - They are open: a system call into them is not refused with `EFAULT`, whatever the mechanism. One case is left under `.inPlace` and
  ///   `.mprotect`, of memory that is not the pool's: a snapshot protects the pages for the microseconds that it takes to copy them, and a call that copies into
  ///   them just then (a read without O_DIRECT) answers `EFAULT` or stops short. Try again, or use ``read(from:offset:into:)``.
  ///
  /// Costs as much as ``pin(_:_:)``: for pages that are open already some instructions and no system call.
  ///
  /// - Parameter pages: Every page that the operation may write a byte of.
  /// - Throws: What ``pin(_:_:)`` throws for a pin for writing, if any page cannot be pinned; nothing is pinned then, and what can be
  ///   told beforehand leaves nothing in dirty sets (<doc:Pins#Refusals-and-dirty-sets>).
  public func beginIO(into pages: Range<Int>) throws(PinError) -> IOInFlight {
    if table.hasDeniedPages { try requirePinnable(pages, .write) }
    return IOInFlight(try pinWhole(pages, .write))
  }

  /// The same around an operation that has ended when `body` returns or throws.
  ///
  /// - Parameters:
  ///   - pages: Every page that the operation may write a byte of.
  ///   - body: Gets their bytes.
  /// - Throws: What ``beginIO(into:)`` throws, and then `body` is not called; what `body` throws.
  public func withIOInFlight<Result>(
    into pages: Range<Int>, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
  ) throws -> Result {
    let io = try beginIO(into: pages)
    return try unsafe io.withUnsafeMutableBytes(body)
  }
}
