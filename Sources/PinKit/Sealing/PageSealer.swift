/// Seals pages in place and opens them again: encryption with authentication, or whatever makes bytes unreadable to those without a
/// key.
///
/// PinKit calls a sealer in the fault path, with the page locked, from any thread, and from several threads at a time for different
/// pages. So a sealer
///
/// - touches no memory that PinKit manages but the page it is given,
/// - takes no lock that is held while such memory is touched, and waits for nothing that takes longer than a page,
/// - should not allocate (K2): what opening needs once a thread is made in ``prepareThread()``, and
/// - leaves no plain byte and no byte of a key anywhere but in the page and in a ``KeyPage``: not on the stack, not in memory that it
///   frees (S5).
///
/// The page's own lock is all that keeps others from seeing a page half done.
public protocol PageSealer: Sendable {
  /// How many bytes a sealed page needs beside its own: what the sealer wants back to open it, such as a nonce and a tag. The caller keeps
  /// them, and need not keep them secret. Always the same.
  var recordSize: Int { get }

  /// Allocates what ``open(_:identity:record:)`` needs for the calling thread, also where it is going to fail.
  ///
  /// Called on every thread that is about to open pages, with no page locked; again and again, so it should cost next to nothing when there is
  /// nothing to do. Does nothing by default.
  func prepareThread()

  /// Makes the bytes of `page` unreadable, in place.
  ///
  /// - Parameters:
  ///   - page: A whole page; accessible, and used by nobody else.
  ///   - identity: Which page it is, and which sealing of it. Sealing twice under the same identity is allowed, but then either result opens.
  ///   - record: ``recordSize`` bytes to fill.
  /// - Throws: `.keyGone`, `.limitReached`; the page is as it was, and the record undefined.
  func seal(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeMutableRawBufferPointer
  ) throws(PinError)

  /// Makes them what they were.
  ///
  /// - Parameters:
  ///   - page: As many bytes as were sealed.
  ///   - identity: The one that it was sealed under.
  ///   - record: What sealing filled.
  /// - Throws: `.tampered` if anything differs from what sealing left: the bytes, the record, the identity. `.keyGone`. However it fails,
  ///   the page has the sealed bytes that it had, and no plain byte is anywhere.
  func open(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeRawBufferPointer
  ) throws(PinError)
}

extension PageSealer {
  public func prepareThread() {}
}

/// What a sealed page is bound to, so that it does not open in the place of another one, nor in the place of a later state of itself.
public struct PageIdentity: Sendable, Hashable {
  /// Of the region, within the process.
  public var region: UInt64
  /// Within the region.
  public var page: Int
  /// Grows with each sealing of the page.
  public var generation: UInt64

  public init(region: UInt64, page: Int, generation: UInt64) {
    self.region = region
    self.page = page
    self.generation = generation
  }
}
