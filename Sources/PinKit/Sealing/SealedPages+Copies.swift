internal import Synchronization

/// What snapshots and clones have of sealed pages: sealed bytes.
extension SealedPages {
  /// Notes what a snapshot found sealed at its moment, under the exclusive lock.
  func noteMoment(_ store: CaptureStore) {
    let now = sealed.pages(in: 0..<pageCount)
    var records: [Int: SealRecord] = [:]
    for run in now.runs { for page in run { records[page] = sealRecord(page) } }
    let moment = Moment(store: SnapshotSet.identity(store), sealed: now, records: records)
    moments.withLock { $0.append(moment) }
  }

  /// Forgets what no open snapshot needs: a closed one's copies stay as long as an older one may look for them there.
  ///
  /// - Parameter open: Oldest first.
  func forgetMoments(olderThan open: UInt?) {
    moments.withLock { list in
      guard let open else { return list = [] }
      if let index = list.firstIndex(where: { $0.store == open }) { list.removeFirst(index) }
    }
  }

  func moment(of store: CaptureStore) -> Moment? {
    let identity = SnapshotSet.identity(store)
    return moments.withLock { $0.first { $0.store == identity } }
  }

  private func sealRecord(_ page: Int) -> SealRecord {
    SealRecord(identity: identity(page), bytes: unsafe [UInt8](record(page)))
  }

  /// What a clone has its sealed pages with: the same sealer, and copies of the sealed bytes. Nobody has seen the clone yet.
  func inherited(by child: Region) throws(PinError) -> SealedPages {
    guard let frames = child.frames else { preconditionFailure("a region of pool frames without frames") }
    let protection = try child.protection()
    let pages = try SealedPages(
      region: child, sealer: sealer, options: options, frames: frames, protection: protection,
      session: try child.session(protection, isUntouched: true))
    try pages.connect(child)
    return pages
  }

  /// Under the exclusive lock; the clone has copies of the frames.
  func handOver(to child: SealedPages) {
    for run in sealed.pages(in: 0..<pageCount).runs {
      for page in run {
        unsafe child.entry(page).copyMemory(from: UnsafeRawBufferPointer(entry(page)))
        child.sealed.insert(page..<page + 1)
        if poisoned.contains(page) { child.poisoned.insert(page..<page + 1) }
        unsafe child.frames.extent(of: page).pointee.update(page) { word in
          var word = word
          word.flags.insert(.sealed)
          return word
        }
      }
    }
  }
}

extension Snapshot {
  /// What opens the bytes that the snapshot has of a page, with the region's sealer; `nil` if the page was not sealed at its moment.
  ///
  /// - Throws: ``PinError`` `.outOfBounds`, `.closed`.
  public func seal(of page: Int) throws(PinError) -> SealRecord? {
    _ = try region.addresses(of: page..<page + 1)
    return region.seals?.moment(of: try openStore("ask for a seal"))?.records[page]
  }
}
