/// The pages of a region at one moment: what an image is written from.
///
/// It is used by the writing thread only, and its answers must not change while it is.
protocol ImageSource {
  /// In bytes.
  var pageSize: Int { get }
  /// Of the region, not of the pages to store.
  var pageCount: Int { get }
  var identity: SnapshotIdentity { get }
  /// The image that this one is an increment of; `nil` for a full image.
  var parent: SnapshotIdentity? { get }
  /// What the region is made of, in words.
  var backing: String { get }
  /// The pages to store: ascending, disjoint and not adjacent. All pages for a full image; for an increment those that may differ
  /// from its parent's, also where they are all zeros now.
  var runs: [Range<Int>] { get }
  /// Copies the bytes of consecutive pages, all of one run, into memory of exactly their size.
  ///
  /// - Throws: If the snapshot was given up; the image is given up then, with the same error.
  func copy(pages: Range<Int>, into target: UnsafeMutableRawBufferPointer) throws(PinError)
  /// Whether the pages are known to be zeros without looking at them: untouched memory costs a look at its list of pages only.
  func isKnownZero(_ pages: Range<Int>) -> Bool
  /// Whether its pages may be sealed ones: what they were copied to is wiped.
  var holdsSecrets: () -> Bool { get }
  /// The pages have been copied, and will not be asked for again.
  func release(_ pages: Range<Int>) throws(PinError)
}

extension ImageSource {
  var holdsSecrets: () -> Bool { { false } }
  func isKnownZero(_ pages: Range<Int>) -> Bool { false }
  func release(_ pages: Range<Int>) throws(PinError) {}
}

/// How far the writing, verifying or restoring of an image has come.
public struct ImageProgress: Sendable, Hashable {
  /// Pages that have been dealt with: written, or found to be all zeros, or read and checked.
  public var pagesDone: Int
  /// Pages there are to deal with.
  public var pagesTotal: Int
  /// Written to files or read from them; what is a hole in a file counts nothing.
  public var bytesTransferred: Int

  public init(pagesDone: Int, pagesTotal: Int, bytesTransferred: Int) {
    self.pagesDone = pagesDone
    self.pagesTotal = pagesTotal
    self.bytesTransferred = bytesTransferred
  }

  /// What a progress closure answers.
  public enum Decision: Sendable, Hashable {
    case proceed
    /// The call throws `.cancelled` and leaves no file behind.
    case cancel
  }
}
