internal import Synchronization

extension Snapshot {
  /// Writes the snapshot to a file: a sparse raw image of the region, page *p* at *p* times the page size, and beside it a small header
  /// (`<path>.pinkit`) with its identity, geometry and checksums.
  ///
  /// Writers of the region go on meanwhile. Blocks until the image survives a power failure. A process that dies half-way leaves no
  /// image, or the old one.
  ///
  /// - Parameters:
  ///   - path: Of the raw image.
  ///   - older: Given, only the pages are stored that may have changed since that snapshot, whose image is the parent
  ///     (``changes(since:)``). It may be closed.
  ///   - releasing: Whether each page is given up as soon as it has been copied (it cannot be read from this snapshot again, and writers
  ///     do not have to keep it any more): the image costs the least memory, and writers the least time.
  ///   - replacing: Whether an image, or any plain file, at `path` may be replaced.
  ///   - progress: Called on this thread, at the beginning and after every block of at most 4 MiB.
  /// - Returns: The image, as ``SnapshotImage/init(path:)`` would read it.
  /// - Throws: ``PinError``: `.alreadyExists`, `.outOfSpace`, `.cancelled`, `.inUse` if somebody writes to the same path, `.unsupported` for pages
  ///   that no image can have, what ``copy(_:into:)`` and ``changes(since:)`` throw, and what the file system refuses. The region is
  ///   as usable as before; pages that were released stay so.
  @discardableResult
  public func write(
    to path: String, since older: Snapshot? = nil, releasing: Bool = false, replacing: Bool = false,
    progress: (ImageProgress) -> ImageProgress.Decision = { _ in .proceed }
  ) throws(PinError) -> SnapshotImage {
    if let moment = try openStore("write an image").moment.withLock({ $0 }), let page = moment.sealed.runs.first?.lowerBound
    {
      throw PinError(
        .sealed, operation: "write an image", range: region.addresses,
        advice:
          "Page \(page) was sealed at the moment of the snapshot, and an image has no place for what opens it: make the region's pages accessible before taking the snapshot."
      )
    }
    let stored = DirtySet(pageCount: pageCount, runs: try storedRuns())
    var runs = [0..<pageCount]
    if let older { runs = try changes(since: older).runs }
    let source = SnapshotSource(
      snapshot: self, parent: older?.identity, runs: runs, stored: stored,
      vacant: try openStore("write an image").vacant.withLock { $0 }, isReleasing: releasing)
    return try ImageWriter.write(source, to: path, replacing: replacing, progress: progress)
  }
}

private struct SnapshotSource: ImageSource {
  let snapshot: Snapshot
  let parent: SnapshotIdentity?
  let runs: [Range<Int>]
  /// Every other page holds zeros.
  let stored: DirtySet
  /// Guard pages: they have no bytes, and an image has no place to say so.
  let vacant: DirtySet?
  let isReleasing: Bool

  var pageSize: Int { snapshot.pageSize }
  var pageCount: Int { snapshot.pageCount }
  var identity: SnapshotIdentity { snapshot.identity }
  var holdsSecrets: () -> Bool { { [region = snapshot.region] in region.hasSeals.load(ordering: .relaxed) } }
  var backing: String { snapshot.region.backing.description }

  func isKnownZero(_ pages: Range<Int>) -> Bool { stored.isDisjoint(with: pages) }

  func copy(pages: Range<Int>, into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    unsafe try snapshot.copy(pages, into: target, vacant: vacant)
  }

  func release(_ pages: Range<Int>) throws(PinError) {
    if isReleasing { try snapshot.release(pages) }
  }
}
