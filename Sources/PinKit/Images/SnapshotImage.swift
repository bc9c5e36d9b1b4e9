/// A file that holds the pages of a region at one moment: all of them, or those that changed since another image.
///
/// An image is two files. The one at ``path`` is sparse and holds every stored page at its place in the region, so that a full
/// image can be mapped, copied or compared as it is; pages of zeros are holes. `<path>.pinkit` beside it is the header: what the
/// image is, on top of which other image, and the checksums. A value of this type is what the header said when it was read;
/// whether the pages are still those that were written, ``verify(progress:)`` finds out.
public struct SnapshotImage: Sendable, Hashable {
  /// Whether an image stands for itself.
  public enum Kind: String, Sendable, Hashable, CaseIterable {
    /// Holds every page.
    case full
    /// Holds the pages that changed since its parent.
    case increment
  }

  /// Of the file that holds the pages.
  public let path: String
  let header: ImageHeader

  public var kind: Kind { parent == nil ? .full : .increment }
  public var identity: SnapshotIdentity { header.identity }
  /// The image that this one is an increment of; `nil` for a full image.
  public var parent: SnapshotIdentity? { header.parent }
  /// In bytes.
  public var pageSize: Int { header.pageSize }
  /// Of the region; ``storedPages`` are some of them.
  public var pageCount: Int { header.pageCount }
  /// The region's size, which is the file's too.
  public var byteCount: Int { header.byteCount }
  /// What the region was made of, in words.
  public var backing: String { header.backing }
  /// The pages that the image knows: all of a full image; of an increment those that changed, also to zeros.
  public var storedPages: DirtySet { header.pages }

  init(path: String, header: ImageHeader) {
    self.path = NamedFile.absolute(path)
    self.header = header
  }

  /// Reads the header of the image at `path`, and checks it and the size of the file with the pages. Blocks while it reads.
  ///
  /// The pages are not read; see ``verify(progress:)``.
  /// - Throws: ``PinError``: `.notFound` if there is no image, which is also so where writing one was interrupted; `.corruptImage`
  ///   if the header is not what was written or the file has another size; `.unsupported` for a later version of the format.
  public init(path: String) throws(PinError) {
    try NamedFile.check(path: path)
    // An image that is being replaced has its header and its pages exchanged one after the other.
    for _ in 0..<3 {
      let (header, file) = try Self.readHeader(of: path)
      let attributes = try Self.dataAttributes(of: path)
      guard try NamedFile.attributes(of: path + ImageHeader.suffix).map(file.isSameFile) ?? false else { continue }
      guard attributes.isRegular, attributes.size == header.byteCount else {
        throw .wrongSize(attributes.size, of: path, expected: header.byteCount)
      }
      self.init(path: path, header: header)
      return
    }
    throw PinError(.inUse, operation: "open \(path)", advice: "The image is being replaced over and over; try again.")
  }

  /// What the file with the pages takes of the file system now, in bytes; holes take nothing.
  ///
  /// - Throws: ``PinError`` `.notFound`.
  public func allocatedBytes() throws(PinError) -> Int { try Self.dataAttributes(of: path).allocated }

  private static func readHeader(of path: String) throws(PinError) -> (ImageHeader, NamedFile.Attributes) {
    let headerPath = path + ImageHeader.suffix
    let file = try openHeader(headerPath, of: path)
    let attributes = try file.attributes()
    guard attributes.isRegular, attributes.size <= ImageHeader.largestFile else {
      throw PinError(
        .corruptImage, operation: "read the header \(headerPath)",
        advice: "It is no plain file of at most \(ImageHeader.largestFile) bytes; that is no header of an image.")
    }
    var content = [UInt8](repeating: 0, count: attributes.size)
    let result: Result<Int, PinError> = unsafe content.withUnsafeMutableBytes { bytes in
      do throws(PinError) { return .success(try unsafe file.read(into: bytes)) } catch { return .failure(error) }
    }
    content.removeLast(content.count - (try result.get()))
    return (try ImageHeader(content, path: headerPath), attributes)
  }

  private static func openHeader(_ headerPath: String, of path: String) throws(PinError) -> NamedFile {
    do throws(PinError) { return try .open(headerPath) } catch  where error.code == .notFound {
      throw PinError(
        .notFound, operation: "open \(headerPath)", errno: error.errno,
        advice: "There is no image at \(path): it was never finished, or its header was not copied along. "
          + "An image is named by its path without \(ImageHeader.suffix).")
    }
  }

  private static func dataAttributes(of path: String) throws(PinError) -> NamedFile.Attributes {
    do throws(PinError) { return try NamedFile.open(path).attributes() } catch  where error.code == .notFound {
      throw PinError(
        .notFound, operation: "open \(path)", errno: error.errno,
        advice: "There is only its header: the image was never finished, or the file was moved away.")
    }
  }
}
