internal import Synchronization
internal import SystemPackage

extension Snapshot {
  /// Copies the bytes of `pages`, as they were at the moment of the snapshot, to `target`.
  ///
  /// Reads never wait for writers, and never disturb them. Works after the region was unmapped, too, if the bytes could be kept.
  /// Pages that ``Region/protect(_:to:)`` made unreadable are read all the same. A page that was sealed at the moment of the snapshot comes with its
  /// sealed bytes, which ``seal(of:)`` helps to open.
  ///
  /// - Parameters:
  ///   - pages: Page indices.
  ///   - target: As many bytes as the pages have; not in a managed region.
  /// - Throws: ``PinError``: `.outOfBounds`, `.invalidArgument` for a target of another size, or one of adopted memory's that cannot be written, `.snapshotLost` when the snapshot was
  ///   given up, `.inaccessible` where a page of adopted memory had no bytes, or has lost them (K6): the other pages can be read;
  ///   `.released`, `.closed`, `.handlerLost` or `.mappingChanged` when the region can no longer be watched (K3),
  ///   `.notInherited`, `.wouldDeadlock` from a fault callback. The target's bytes mean nothing then.
  public func copy(_ pages: Range<Int>, into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    _ = try region.addresses(of: pages)
    guard target.count == pages.count * pageSize else {
      throw PinError(
        .invalidArgument, operation: "read a snapshot",
        advice: "\(pages.count) pages are \(pages.count * pageSize) bytes, the target has \(target.count).")
    }
    unsafe try copy(pages, into: target, vacant: nil)
  }

  /// The same for an image: the pages of `vacant` come as zeros.
  func copy(_ pages: Range<Int>, into target: UnsafeMutableRawBufferPointer, vacant: DirtySet?) throws(PinError) {
    try reading("read a snapshot") { store throws(PinError) in
      guard let start = target.baseAddress, !pages.isEmpty else { return }
      unsafe try copy(pages, of: store, into: start, vacant: vacant)
    }
  }

  private func copy(
    _ pages: Range<Int>, of store: Uncounted<CaptureStore>, into start: UnsafeMutableRawPointer, vacant: DirtySet?
  ) throws(PinError) {
    var page = pages.lowerBound
    while page < pages.upperBound {
      let offset = (page - pages.lowerBound) * pageSize
      if let holder = holder(of: page, store) {
        if let vacant, vacant.contains(page) {
          unsafe (start + offset).initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
        } else {
          unsafe try copyOut(page, of: holder, into: start + offset)
        }
        page += 1
      } else {
        var end = page + 1
        while end < pages.upperBound, holder(of: end, store) == nil { end += 1 }
        unsafe try copyLive(page..<end, store, into: start + offset)
        page = end
      }
    }
    try validate(pages, store)
  }

  @inline(__always) private func holder(of page: Int, _ store: Uncounted<CaptureStore>) -> Uncounted<CaptureStore>? {
    store.with { $0.holder(of: page) }
  }

  private func copyOut(
    _ page: Int, of holder: Uncounted<CaptureStore>, into target: UnsafeMutableRawPointer
  ) throws(PinError) {
    let hasBytes = holder.with { holder in
      if holder.isUnreadable(page) { return false }
      unsafe holder.copyOut(page..<page + 1, into: target)
      return true
    }
    if !hasBytes { throw withoutBytes(page) }
  }

  private func withoutBytes(_ page: Int) -> PinError {
    PinError(
      .inaccessible, operation: "read page \(page) of a snapshot", range: region.addressesUnchecked(of: page..<page + 1),
      advice:
        "It was a guard page, or behind the end of its file, or became that before its bytes were kept. The other pages can be read."
    )
  }

  /// The bytes of one page.
  ///
  /// - Throws: As ``copy(_:into:)``.
  public func read(_ page: Int) throws(PinError) -> [UInt8] {
    guard page >= 0, page < pageCount else {
      throw PinError(
        .outOfBounds, operation: "read page \(page) of a snapshot", advice: "The region has \(pageCount) pages.")
    }
    var failure: PinError?
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: pageSize) { buffer, count in
      do throws(PinError) {
        unsafe try copy(page..<page + 1, into: UnsafeMutableRawBufferPointer(buffer))
        count = pageSize
      } catch {
        failure = error
        if region.hasSeals.load(ordering: .relaxed) {
          unsafe Memory.wipe(AddressRange(UnsafeMutableRawBufferPointer(buffer)))
        }
      }
    }
    if let failure { throw failure }
    return bytes
  }

  /// Whatever was kept was kept right, unless the snapshot has been given up, closed or released by now.
  private func validate(_ pages: Range<Int>, _ store: Uncounted<CaptureStore>) throws(PinError) {
    // What a page was kept as after other code had dropped it is not to be taken for the old bytes.
    set.settle()
    atomicMemoryFence(ordering: .acquiring)
    if isClosed.load(ordering: .acquiring) { throw closed("read a snapshot") }
    if let failure = store.with({ $0.failureOfChain(region.addresses) }) { throw failure }
    guard hasReleased.load(ordering: .acquiring) else { return }
    let released = released.withLock { $0 }
    if let page = pages.first(where: { released.contains($0) }) {
      throw PinError(
        .released, operation: "read page \(page) of a snapshot", advice: "Its bytes were copied out and given up before.")
    }
  }

  /// Copies pages that nobody had kept a moment ago from the region.
  ///
  /// There is no lock against writers. A page's bytes may change while they are copied, but a write to a page that is owed lands
  /// only after its bytes were kept and `captured` says so, in the newest store. So: copy, then look again, in all stores that
  /// there are *then*. Is the page still in none, no write had landed when the copy ended, and the copy is good. Otherwise the store
  /// has the bytes. (Loads are kept in order by the fence between; the stores by the page-table update between.)
  ///
  /// There are three ways for bytes to change without having been kept, and each is announced before: a store that was given up says
  /// so before its page is opened, a region that failed before its protection is lifted, and a removal behind PinKit's back
  /// is read from the userfaultfd before the pages go, by a thread that `settle()` waits for.
  private func copyLive(
    _ pages: Range<Int>, _ store: Uncounted<CaptureStore>, into target: UnsafeMutableRawPointer
  ) throws(PinError) {
    if try enterRegion() {
      let failure = uncountedRegion.with { unsafe copyInside($0, pages, store, into: target) }
      if let failure { throw failure }
    }
    for page in pages {
      guard let holder = holder(of: page, store) else { continue }
      unsafe try copyOut(page, of: holder, into: target + (page - pages.lowerBound) * pageSize)
    }
  }

  /// Leaves the region, which was entered. What went wrong is returned: who counts no references cannot throw.
  private func copyInside(
    _ region: Region, _ pages: Range<Int>, _ store: Uncounted<CaptureStore>, into target: UnsafeMutableRawPointer
  ) -> PinError? {
    defer { region.leave() }
    TestHooks.reach(.readingLive, page: pages.lowerBound)
    do throws(PinError) {
      if let seals = region.copyDecision {
        // Read in place a sealed page would be opened.
        unsafe seals.copyAsTheyAre(pages, into: target)
      } else if region.isStored {
        unsafe try copyFrames(pages, into: target)
      } else {
        try region.withRights { () throws(PinError) in unsafe try copyAllowed(region, pages, store, into: target) }
      }
      atomicMemoryFence(ordering: .acquiring)
      set.settle()
      try set.requireWatched("read a snapshot", pages)
      return nil
    } catch {
      return error
    }
  }

  /// True if the memory is there, and stays until `region.leave()`. Otherwise everything that could be kept has been kept.
  func enterRegion(_ operation: StaticString = "read a snapshot") throws(PinError) -> Bool {
    while true {
      let failure = uncountedRegion.with { region -> PinError? in
        do throws(PinError) { try region.enter(operation) } catch { return error }
        return nil
      }
      guard let failure else { return true }
      guard failure.code == .unmapped else { throw failure }
      // Inside an access of its own the thread may not wait for the end of all accesses, and need not.
      if region.gate.isMine {
        throw PinError(
          .unmapped, operation: "\(operation)", range: region.addresses,
          advice: "Another thread waits to unmap the region; leave withUnsafeMutableBytes, then read.")
      }
      // It stays where its store refuses what has changed.
      while region.gate.isClosed {
        if set.isEnded.load(ordering: .acquiring) { return false }
        Kernel.pause(nanoseconds: 20_000)
      }
    }
  }

  /// Pages that come from a store are read from their frames, which are brought in first and stay as long as they are looked at: what the
  /// store says is an error then, and no signal in the access.
  private func copyFrames(_ pages: Range<Int>, into target: UnsafeMutableRawPointer) throws(PinError) {
    for page in pages {
      let frame = try region.lookUpInside(page)
      let source = unsafe UnsafeRawPointer(bitPattern: try frame.directAddress())!
      unsafe Memory.copy(source, to: target + (page - pages.lowerBound) * pageSize, count: pageSize)
    }
  }

  private func copyAllowed(
    _ region: Region, _ pages: Range<Int>, _ store: Uncounted<CaptureStore>, into target: UnsafeMutableRawPointer
  ) throws(PinError) {
    let table = region.table
    let start = region.addresses.start
    guard table.hasDeniedPages else {
      if region.isAdopted { return unsafe try copyChecked(pages, store, into: target) }
      let source = unsafe UnsafeRawPointer(bitPattern: start + UInt(pages.lowerBound * pageSize))!
      return unsafe Memory.copy(source, to: target, count: pages.count * pageSize)
    }
    var memory: ProcessMemory?
    for page in pages {
      let address = start + UInt(page * pageSize)
      let place = unsafe target + (page - pages.lowerBound) * pageSize
      if table[page].contains(.readDenied) {
        if memory == nil { memory = try ProcessMemory() }
        let result = unsafe memory!.read(address, into: place, count: pageSize)
        if result == -Errno.badAddress.rawValue { throw badTarget(page) }
        if result < 0, region.isAdopted, memory!.meansNoBytes(result) {
          noteWithoutBytes(page, store)
          continue
        }
        try PinError.check(result, "read a page without the right to", region.addressesUnchecked(of: page..<page + 1))
      } else if region.isAdopted {
        unsafe try copyChecked(page..<page + 1, store, into: place)
      } else {
        unsafe Memory.copy(UnsafeRawPointer(bitPattern: address)!, to: place, count: pageSize)
      }
    }
  }

  /// Of memory that other code may guard or truncate: pages without bytes are noted, and the others copied (K6).
  private func copyChecked(
    _ pages: Range<Int>, _ store: Uncounted<CaptureStore>, into target: UnsafeMutableRawPointer
  ) throws(PinError) {
    let source = region.addressesUnchecked(of: pages)
    var done = 0
    var deadline: Deadline?
    while done < source.count {
      let copied = unsafe Memory.copyChecked(
        source.start + UInt(done), toProgram: target + done, count: source.count - done)
      if copied > 0 {
        done += copied
        deadline = nil
        continue
      }
      let page = pages.lowerBound + done / pageSize
      guard copied == Int(Memory.noBytes) else {
        throw .kernel(copied, "read page \(page) of a snapshot", region.addressesUnchecked(of: page..<page + 1))
      }
      if Memory.isReadable(source.start + UInt(done)) {
        if try unsafe Region.openTarget(UInt(bitPattern: target + done), &deadline, "read a snapshot") { continue }
        throw badTarget(page)
      }
      noteWithoutBytes(page, store)
      done = (page + 1 - pages.lowerBound) * pageSize
    }
  }

  private func badTarget(_ page: Int) -> PinError {
    PinError(
      .invalidArgument, operation: "read page \(page) of a snapshot", errno: .badAddress,
      advice: "The page has bytes: it is the target that cannot be written.")
  }

  /// A page that nobody has kept has no bytes: should it get some, they are not those of the snapshot.
  private func noteWithoutBytes(_ page: Int, _ store: Uncounted<CaptureStore>) {
    atomicMemoryFence(ordering: .acquiring)
    if holder(of: page, store) == nil {
      store.with { $0.noteUnreadable(page..<page + 1) }
    }
  }
}

extension SnapshotSet {
  /// As ``RegionProtection/requireWatched(_:)``, and counts no reference while it can be watched.
  func requireWatched(_ operation: String, _ pages: Range<Int>) throws(PinError) {
    if unsafe !protection.domain.pointee.isWatched(pages) { try protection.throwIfFailed(operation) }
  }

  /// Returns after every removal that was read before the call has been noted.
  func settle() {
    for _ in 0..<200 {
      if unsafe protection.domain.pointee.unsettled.load(ordering: .sequentiallyConsistent) == 0 { return }
      Kernel.relax()
    }
    // Readers hold the lock while they read.
    if protection.failure == nil { protection.exclusive { _ in } }
  }
}
