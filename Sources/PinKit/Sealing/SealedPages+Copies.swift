internal import Synchronization

/// What snapshots and clones have of sealed pages: sealed bytes.
extension SealedPages {
  /// What ``noteMoment(_:)`` asks for.
  func noteSealed(_ store: CaptureStore) {
    let now = sealed.pages(in: 0..<pageCount)
    var records: [Int: [UInt8]] = [:]
    for run in now.runs { for page in run { records[page] = bytesOfRecord(page) } }
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

  /// What ``copyAsTheyAre(_:into:)`` asks for: with a claim nobody changes them.
  func copyWithClaim(_ pages: Range<Int>, into target: UnsafeMutableRawPointer) {
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

  private func bytesOfRecord(_ page: Int) -> [UInt8] {
    unsafe [UInt8](entry(page).prefix(SealRecord.headerSize + sealer.recordSize))
  }

  /// What ``inherited(by:)`` asks for, with the same sealer. Nobody has seen the clone yet.
  func makePages(of child: Region) throws(PinError) -> SealedPages {
    let pages = try SealedPages(region: child, sealer: sealer, options: options, isUntouched: true)
    _ = try child.attachments.findOrMake(AccessDecision.self) { pages }
    try pages.connect()
    child.hasSeals.store(true, ordering: .sequentiallyConsistent)
    return pages
  }

  /// What ``handOver(to:)`` asks for.
  func giveRecords(to child: SealedPages) {
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
    return try openStore("ask for a seal").moment.withLock { $0 }?.records[page].map(SealRecord.init(of:))
  }
}

extension SealRecord {
  /// From what a snapshot has kept of a page's record.
  fileprivate init(of kept: [UInt8]) {
    let (region, page, generation) = unsafe kept.withUnsafeBytes { header in
      unsafe (
        header.loadUnaligned(as: UInt64.self), header.loadUnaligned(fromByteOffset: 8, as: Int.self),
        header.loadUnaligned(fromByteOffset: 16, as: UInt64.self)
      )
    }
    self.init(
      identity: PageIdentity(region: region, page: page, generation: generation),
      bytes: Array(kept.dropFirst(Self.headerSize)))
  }
}
