internal import Synchronization

extension Region {
  /// Makes every page of the region what it was when the last of the images was taken. Blocks while it reads them twice.
  ///
  /// All images are verified before the first byte changes. Then every page is written once, by ordinary access, so that trackers
  /// and snapshots of the region see it; pages that are zeros are discarded where that is cheaper. Other threads should leave the
  /// region alone meanwhile: what they write before their page is restored is lost, and what they read is a mixture.
  ///
  /// - Parameters:
  ///   - chain: A full image, then increments, each of the one before it.
  ///   - progress: Called on this thread, at the beginning and after every block of at most 4 MiB. Its `.cancel` is heeded until the
  ///     first byte changes, and ignored from then on.
  /// - Throws: ``PinError``. With nothing changed: `.geometryMismatch`, `.brokenChain`, `.corruptImage`, `.notFound`, `.cancelled`,
  ///   `.pinned` if any page is, `.accessDenied` if `protect(_:to:)` took the right to write away from any page, `.unmapped`, `.wouldDeadlock` from a fault
  ///   callback. If an image changes after it was verified, or the region is unmapped, the same codes with an advice that says that
  ///   a part has been restored.
  public func restore(
    from chain: [SnapshotImage], progress: (ImageProgress) -> ImageProgress.Decision = { _ in .proceed }
  ) throws(PinError) {
    try requireOutsideFaultPath("restore")
    try enter("restore")
    leave()
    try SnapshotImage.validate(chain)
    try chain[0].requireGeometry(pageSize: pageSize, pageCount: pageCount, of: "the region")
    if table.hasDeniedPages,
      let page = (0..<pageCount).first(where: { !table[$0].isDisjoint(with: [.writeDenied, .readDenied]) })
    {
      throw PinError(
        .accessDenied, operation: "restore", range: addressesUnchecked(of: page..<page + 1),
        advice: "protect(_:to:) took the right to write away from page \(page).")
    }
    let pinned = table.pinnedRuns(in: 0..<pageCount)
    guard pinned.isEmpty else { throw memory.pinnedError(pinned, "restore") }
    var target = RestoredRegion(self)
    do throws(PinError) {
      try ImageRestoring.run(chain, into: &target, operation: "restore", cancelsLate: false, progress)
    } catch {
      guard target.hasChanged else { throw error }
      throw PinError(
        error.code, operation: error.operation, errno: error.errno, range: error.range,
        advice: [error.advice, "A part of the region has been restored, so that it is a mixture now; restore it again."]
          .filter { !$0.isEmpty }.joined(separator: " "))
    }
  }

  /// Reads the images at the paths and does the same.
  ///
  /// - Throws: ``PinError``, as ``SnapshotImage/init(path:)`` and ``restore(from:progress:)``.
  public func restore(from paths: String...) throws(PinError) {
    var chain: [SnapshotImage] = []
    for path in paths { chain.append(try SnapshotImage(path: path)) }
    try restore(from: chain)
  }
}

private struct RestoredRegion: ImageTarget {
  private let region: Region
  private var page: [UInt8]
  private let zeros: [UInt8]
  private(set) var hasChanged = false

  /// In bytes. Below it, looking is cheaper than the system call and the fault that follows it.
  private static let worthDiscarding = 64 << 10

  init(_ region: Region) {
    self.region = region
    page = [UInt8](repeating: 0, count: region.pageSize)
    zeros = page
  }

  var holdsSecrets: () -> Bool { { [region] in region.hasSeals.load(ordering: .relaxed) } }

  mutating func put(_ pages: Range<Int>, _ bytes: UnsafeRawBufferPointer) throws(PinError) {
    hasChanged = true
    try unsafe region.copy(bytes, toByteOffset: pages.lowerBound * region.pageSize)
  }

  mutating func putZeros(_ pages: Range<Int>) throws(PinError) {
    if region.backing.support.contains(.discard), pages.count * region.pageSize >= Self.worthDiscarding {
      hasChanged = true
      // Memory that is locked, or was pinned since, cannot be dropped. Whatever else the kernel has against it, zeros can be written.
      do throws(PinError) { return try region.discard(pages) } catch
        where error.code == .unsupported || error.code == .pinned || error.errno != nil
      {}
    }
    for page in pages {
      // What has no bytes, as a guard page has none, holds nothing else either.
      do throws(PinError) { if try isZero(page) { continue } } catch  where error.code == .inaccessible { continue }
      hasChanged = true
      unsafe try trying { bytes throws(PinError) in
        try unsafe region.copy(UnsafeRawBufferPointer(bytes), toByteOffset: page * region.pageSize)
      }
    }
  }

  private mutating func isZero(_ index: Int) throws(PinError) -> Bool {
    let region = region
    let result: Result<Bool, PinError> = unsafe page.withUnsafeMutableBytes { bytes in
      defer { if region.hasSeals.load(ordering: .relaxed) { unsafe Memory.wipe(AddressRange(bytes)) } }
      do throws(PinError) {
        try unsafe region.copy(fromByteOffset: index * region.pageSize, into: bytes)
        return .success(UnsafeRawBufferPointer(bytes).isZero)
      } catch { return .failure(error) }
    }
    return try result.get()
  }

  private func trying(_ body: (UnsafeRawBufferPointer) throws(PinError) -> Void) throws(PinError) {
    let result: Result<Void, PinError> = unsafe zeros.withUnsafeBytes { bytes in
      do throws(PinError) { return .success(try unsafe body(bytes)) } catch { return .failure(error) }
    }
    try result.get()
  }
}
