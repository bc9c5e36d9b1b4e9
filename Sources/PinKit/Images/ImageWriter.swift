/// Writes images.
enum ImageWriter {
  /// Writes an image of `source`, all of it or nothing. Blocks until it survives a power failure.
  ///
  /// - Parameters:
  ///   - path: Of the file for the pages; the header goes beside it. Both can be read and written by their owner only.
  ///   - replacing: Whether an image, or any plain file, at `path` may be replaced. It stays until the new one is complete on the
  ///     disk, and is then exchanged; who looks in that moment finds no image.
  ///   - progress: Called on this thread, at the beginning and after every block of 4 MiB. After it has cancelled, nothing is left.
  /// - Throws: `.alreadyExists`; `.outOfSpace`; `.cancelled`; `.inUse` if somebody is writing to the same path; what `source` throws,
  ///   and what else the file system refuses. There is no image then, or the old one, and no other file.
  static func write(
    _ source: some ImageSource, to path: String, replacing: Bool = false,
    progress: (ImageProgress) -> ImageProgress.Decision = { _ in .proceed }
  ) throws(PinError) -> SnapshotImage {
    let pages = try check(source)
    var files = try ImageFiles.begin(path, replacing: replacing, size: source.pageSize * source.pageCount)
    let checksums = try stream(
      source, to: files.known, path: path, buffers: try BlockBuffers(holdsSecrets: source.holdsSecrets), progress)
    let header = ImageHeader(
      identity: source.identity, parent: source.parent, pageSize: source.pageSize, pageCount: source.pageCount,
      backing: source.backing, pages: pages, checksums: checksums)
    try files.commit(header)
    return SnapshotImage(path: path, header: header)
  }

  private static func check(_ source: some ImageSource) throws(PinError) -> DirtySet {
    guard ImageHeader.supports(pageSize: source.pageSize) else {
      throw PinError(
        .unsupported, operation: "write an image of pages of \(source.pageSize) bytes",
        advice: "Pages of 4 KiB to \(ImageBlocks.size >> 20) MiB are possible.")
    }
    let pages = DirtySet(pageCount: source.pageCount, runs: source.runs)
    guard source.pageCount > 0, pages.runs == source.runs else {
      throw PinError(
        .invalidArgument, operation: "write an image",
        advice: "The runs are not ascending, or overlap, touch, or leave the \(source.pageCount) pages.")
    }
    guard source.parent != nil || pages.runs == [0..<source.pageCount] else {
      throw PinError(
        .invalidArgument, operation: "write a full image",
        advice: "It stores all \(source.pageCount) pages, and \(pages.count) were given.")
    }
    guard source.parent != source.identity else {
      throw PinError(.invalidArgument, operation: "write an increment", advice: "It would be its own parent.")
    }
    return pages
  }

  private static func stream(
    _ source: some ImageSource, to file: KnownDescriptor, path: String, buffers: borrowing BlockBuffers,
    _ progress: (ImageProgress) -> ImageProgress.Decision
  ) throws(PinError) -> [Checksum] {
    let (pageSize, pagesTotal) = (source.pageSize, source.runs.pageTotal)
    var transfers = BlockTransfers(.write, file, path: path)
    var zeros = ZeroChecksums()
    var checksums: [Checksum] = []
    checksums.reserveCapacity(ImageBlocks.count(pages: pagesTotal, pageSize: pageSize))
    /// Per buffer, the pages that were last in it.
    var pages = [Int](repeating: 0, count: BlockBuffers.count)
    var pagesTaken = 0
    let forkGeneration = Kernel.forkGeneration
    func report(_ pagesDone: Int, _ bytes: Int) throws(PinError) {
      let state = ImageProgress(pagesDone: pagesDone, pagesTotal: pagesTotal, bytesTransferred: bytes)
      let decision = progress(state)
      // A child that was forked in there must not go on with its parent's file.
      guard forkGeneration == Kernel.forkGeneration else { throw .notInherited("write \(path)") }
      guard decision == .proceed else { throw .cancelled("write \(path)") }
    }
    try report(0, 0)
    for block in ImageBlocks(source.runs, pageSize: pageSize) {
      let buffer = try transfers.idleBuffer()
      pages[buffer] = block.pageTotal
      pagesTaken += block.pageTotal
      let bytes = unsafe buffers.bytes(buffer, count: block.pageTotal * pageSize)
      var offset = 0
      var isZero = true
      var unfilled: [Range<Int>] = []
      for run in block {
        let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + run.count * pageSize])
        if source.isKnownZero(run) {
          // The buffer is read only if another run of the block is not all zeros.
          unfilled.append(offset..<offset + part.count)
          offset += part.count
          continue
        }
        try unsafe source.copy(pages: run, into: part)
        try source.release(run)
        // The writes of a run may begin while the next run is copied.
        var next = 0
        while let data = unsafe UnsafeRawBufferPointer(part).data(from: next) {
          next = data.upperBound
          isZero = false
          try transfers.queue(
            buffer, at: run.lowerBound * pageSize + data.lowerBound,
            buffers.range(buffer, offset + data.lowerBound, count: data.count))
        }
        offset += part.count
      }
      try transfers.start()
      if checksums.count % 4 == 3 { try transfers.startWriteback() }
      if !isZero {
        for gap in unfilled {
          unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[gap]).initializeMemory(as: UInt8.self, repeating: 0)
        }
      }
      checksums.append(isZero ? zeros.checksum(count: offset) : unsafe Checksum(of: UnsafeRawBufferPointer(bytes)))
      let pagesOnTheirWay = pages.indices.reduce(0) { $0 + (transfers.isBusy($1) ? pages[$1] : 0) }
      try report(pagesTaken - pagesOnTheirWay, transfers.bytesDone)
    }
    try transfers.finishAll()
    if pagesTotal > 0 { try report(pagesTotal, transfers.bytesDone) }
    return checksums
  }
}

extension UnsafeRawBufferPointer {
  /// The next maximal stretch at or behind `start` that is not zeros, in pieces of 4 KiB: the rest becomes holes of the file.
  func data(from start: Int) -> Range<Int>? {
    let grain = 4096
    func isZero(_ at: Int) -> Bool { unsafe UnsafeRawBufferPointer(rebasing: self[at..<at + grain]).isZero }
    var first = start
    while first < count, isZero(first) { first += grain }
    guard first < count else { return nil }
    var end = first + grain
    while end < count, !isZero(end) { end += grain }
    return first..<end
  }
}

extension PinError {
  static func cancelled(_ operation: String) -> PinError {
    PinError(.cancelled, operation: operation, advice: "The progress closure called it off.")
  }
}
