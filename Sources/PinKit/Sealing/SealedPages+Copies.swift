internal import Synchronization

/// What snapshots and clones have of sealed pages: sealed bytes.
extension SealedPages {
  /// Notes what a snapshot found sealed at its moment, under the exclusive lock.
  func noteMoment(_ store: CaptureStore) {
    let now = sealed.pages(in: 0..<pageCount)
    var records: [Int: SealRecord] = [:]
    for run in now.runs { for page in run { records[page] = sealRecord(page) } }
    store.moment.withLock { $0 = SealMoment(sealed: now, records: records) }
    stores.withLock { $0.append(WeakStore(store: store)) }
  }

  /// Of the stores that are still there: a closed snapshot's copies stay as long as an older one may look for them there.
  func openMoments() -> [SealMoment] {
    stores.withLock { list in
      list.removeAll { $0.store == nil }
      return list.compactMap { $0.store?.moment.withLock { $0 } }
    }
  }

  /// Copies the bytes of pages as they are, sealed or not, for who knows what they were: with a claim nobody changes them.
  func copyAsTheyAre(_ pages: Range<Int>, into target: UnsafeMutableRawPointer) {
    for page in pages {
      shared { _ in
        _ = table.claim(page)
        defer { table.releaseClaim(page) }
        unsafe Memory.copy(
          UnsafeRawPointer(bitPattern: frames.directAddress(of: page))!,
          to: target + (page - pages.lowerBound) * Memory.pageSize,
          count: Memory.pageSize)
      }
    }
  }

  private func sealRecord(_ page: Int) -> SealRecord {
    SealRecord(identity: identity(page), bytes: unsafe [UInt8](record(page)))
  }

  /// What a clone has its sealed pages with: the same sealer, and copies of the sealed bytes. Nobody has seen the clone yet.
  func inherited(by child: Region) throws(PinError) -> SealedPages {
    let pages = try SealedPages(region: child, sealer: sealer, options: options, isUntouched: true)
    _ = try child.attachments.findOrMake(SealedPages.self) { pages }
    try pages.connect()
    child.hasSeals.store(true, ordering: .sequentiallyConsistent)
    return pages
  }

  /// Under the exclusive lock; the clone has copies of the frames.
  func handOver(to child: SealedPages) {
    let now = sealed.pages(in: 0..<pageCount)
    if !now.isEmpty { child.hasEverSealed.store(true, ordering: .sequentiallyConsistent) }
    for run in now.runs {
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
  /// - Throws: ``PinError`` `.outOfBounds`, `.closed`, `.notInherited`, `.wouldDeadlock` from a fault callback.
  public func seal(of page: Int) throws(PinError) -> SealRecord? {
    try region.requirePage(page)
    return try openStore("ask for a seal").moment.withLock { $0 }?.records[page]
  }
}

/// Which pages were sealed at the moment of a snapshot, and what opens them.
struct SealMoment: Sendable {
  let sealed: DirtySet
  let records: [Int: SealRecord]
}
