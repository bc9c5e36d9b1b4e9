/// Where the pages of a ``Backing/file(_:fillAround:)`` region come from and go to.
///
/// PinKit calls a store from threads of its own, several at a time, for different pages; never twice at a time for the same one. A store
/// may block for as long as it likes: faults on other pages are served meanwhile, and other stores have threads that it cannot take (K3). One
/// that may be cut off, as of a server, should give up by itself and throw. The log has it by its type, and by its description if it is
/// `CustomStringConvertible`, which is asked when a region over it is made. It must not touch memory of the region, nor call
/// the region.
public protocol PageStore: AnyObject, Sendable {
  var geometry: StoreGeometry { get }

  /// Fills `memory` with the bytes of `pages`, or throws: fewer bytes are an error, since what was in the memory before is another page's
  /// (what lies behind the end of the last page's bytes is filled with zeros).
  ///
  /// - Parameters:
  ///   - pages: Not empty, and inside the geometry.
  ///   - memory: `pages.count` pages, aligned to a page.
  func read(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) throws(PinError)

  /// The same if it takes no waiting, as for what is in the page cache: then faults need not change threads. False if it would; the
  /// memory's content is undefined then.
  func readNow(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) -> Bool

  /// Writes pages, in any order, and says for each transfer what became of it: `nil`, or why it is not all written. They need not be
  /// durable.
  ///
  /// - Returns: As many answers as there are transfers, in their order. With any other number nobody knows which answer is whose: then
  ///   none of the transfers counts as written, and the flush throws `.inputOutput`.
  func write(_ transfers: [PageTransfer]) -> [PinError?]

  /// Called before pages become writable, with each page locked, and again after each time that they were cleaned: the store can refuse
  /// (no space, read-only), or reserve what writing them back will need (N3).
  func pageMakeWritable(_ pages: Range<Int>) throws(PinError)

  /// The same if it takes no waiting, as where nothing has to be reserved: then faults need not change threads. False if it would, or if
  /// the answer is no: then ``pageMakeWritable(_:)`` is asked.
  func pageMakeWritableNow(_ pages: Range<Int>) -> Bool

  /// Makes everything durable whose ``write(_:)`` has returned. Where it throws, nothing of that may be taken for durable: PinKit writes
  /// it all again.
  func flush() throws(PinError)
}

extension PageStore {
  public func readNow(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) -> Bool { false }
  public func pageMakeWritable(_ pages: Range<Int>) throws(PinError) {}
  public func pageMakeWritableNow(_ pages: Range<Int>) -> Bool { false }
}

/// Pages of a store, and the memory that holds their bytes.
public struct PageTransfer: Sendable, Hashable {
  public var pages: Range<Int>
  /// `pages.count` pages, aligned to a page; does not change until the call returns.
  public var memory: AddressRange

  public init(pages: Range<Int>, memory: AddressRange) {
    self.pages = pages
    self.memory = memory
  }
}

/// How large a store is, and what it promises.
public struct StoreGeometry: Sendable, Hashable {
  /// In bytes; the last page may be partly used.
  public var byteCount: Int
  /// In bytes: aligned pieces of this size are written wholly or not at all, whatever interrupts the program.
  public var atomicUnit: Int
  public var isReadOnly: Bool
  /// Whether the store must hear of pages before they are written (``PageStore/pageMakeWritable(_:)``) and writes them back: then no long-term pin
  /// may write them (P1). False for a store that only fills.
  public var needsDirtyTracking: Bool

  public init(
    byteCount: Int, atomicUnit: Int = 4096, isReadOnly: Bool = false, needsDirtyTracking: Bool = true
  ) {
    self.byteCount = byteCount
    self.atomicUnit = atomicUnit
    self.isReadOnly = isReadOnly
    self.needsDirtyTracking = needsDirtyTracking
  }

  /// How many pages of 4 KiB hold the bytes; 0 for a count of bytes that is not above 0.
  public var pageCount: Int { byteCount > 0 ? (byteCount - 1) / Memory.pageSize + 1 : 0 }
}
