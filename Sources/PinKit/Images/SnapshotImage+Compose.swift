extension SnapshotImage {
  /// Writes what a region would hold after it was restored from the images to a plain, sparse file, all of it or nothing. Blocks
  /// until the file survives a power failure.
  ///
  /// - Parameters:
  ///   - chain: A full image, then increments, each of the one before it.
  ///   - path: Of the file; it can be read and written by its owner only.
  ///   - replacing: Whether a plain file at `path` may be replaced.
  ///   - progress: Called on this thread, at the beginning and after every block of at most 4 MiB.
  /// - Throws: ``PinError``: `.brokenChain`, `.geometryMismatch`, `.corruptImage`, `.notFound`, `.alreadyExists`, `.outOfSpace`,
  ///   `.cancelled`, `.inUse` if somebody is writing to the same path. The path is as it was then.
  public static func compose(
    _ chain: [SnapshotImage], to path: String, replacing: Bool = false,
    progress: (ImageProgress) -> ImageProgress.Decision = { _ in .proceed }
  ) throws(PinError) {
    try validate(chain)
    var file = try PartialFile.begin(path, replacing: replacing)
    guard try NamedFile.attributes(of: path + ImageHeader.suffix) == nil else {
      throw PinError(
        .invalidArgument, operation: "write \(path)",
        advice: "It would lie beside the header of an image, and not be what that describes; choose another path.")
    }
    try file.file.setSize(chain[0].byteCount)
    var target = ComposedFile(file: file.file.known, path: path, pageSize: chain[0].pageSize)
    try ImageRestoring.run(chain, into: &target, operation: "restore to \(path)", cancelsLate: true, progress)
    try file.file.sync()
    try file.publish(replacing: replacing)
    try NamedFile.syncDirectory(of: path)
  }
}

/// New and all a hole, so that zeros need nothing. Lives no longer than its file is open.
private struct ComposedFile: ImageTarget {
  let file: KnownDescriptor
  let path: String
  let pageSize: Int

  mutating func put(_ pages: Range<Int>, _ bytes: UnsafeRawBufferPointer) throws(PinError) {
    var rest = AddressRange(start: UInt(bitPattern: bytes.baseAddress), count: bytes.count)
    var offset = pages.lowerBound * pageSize
    while !rest.isEmpty {
      let moved = try NamedFile.move(false, file.checked, path, at: offset, rest)
      guard moved > 0 else { throw .outOfSpace("write \(path) at \(offset)") }
      offset += moved
      rest.start += UInt(moved)
    }
  }

  mutating func putZeros(_ pages: Range<Int>) {}
}
