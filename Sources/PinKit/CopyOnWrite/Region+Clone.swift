internal import Synchronization

extension Region {
  /// Makes a region with the same bytes, which shares this one's frames until either of them writes.
  ///
  /// Copies nothing and touches no page: the frames are counted and this region's pages are protected, once, by
  /// one operation; pages that were broken away since an earlier clone cost a few steps each. Then the first write to a page on either
  /// side copies it into a frame of its own, with a few neighbours where many pages are being written, unless the frame has nobody
  /// else by then (``ReusePolicy``). Frames that are pinned for writing are copied at once, since what is written through the pin must not
  /// reach the clone. Writers may run on: the clone has the bytes of one moment within the call (W5).
  ///
  /// A clone is a region like any other, and may be cloned; the two can be unmapped in any order. Its pages may be read and written,
  /// whatever ``protect(_:to:)`` took away here. Trackers are not inherited. A region that is tracked by `.asynchronous` changes
  /// over to handler threads (see <doc:CopyOnWrite>).
  ///
  /// - Parameters:
  ///   - reuse: By what rule both decide from now on.
  ///   - mechanism: How faults reach PinKit; `.automatic` is `.handlerThread`, or `.mprotect` where userfaultfd is forbidden, or what
  ///     the region has already.
  /// - Throws: ``PinError``: `.unsupported` unless the region is of `.pool` memory, `.unmapped`, `.inUse`, `.outOfMemory`, `.wouldDeadlock` from a
  ///   fault callback. The region is as before then.
  public func clone(
    reuse: ReusePolicy = .exclusive, mechanism: WriteTracking.Mechanism = .automatic
  ) throws(PinError) -> Region {
    try requireOutsideFaultPath("clone")
    try enter("clone")
    defer { leave() }
    guard let frames else {
      throw PinError(
        .unsupported, operation: "clone", range: addresses,
        advice:
          "The backing is \(backing): only frames of a pool can be shared. Map the region as .pool, or take a snapshot.")
    }
    guard mechanism != .asynchronous else {
      throw PinError(
        .unsupported, operation: "clone", range: addresses,
        advice:
          "The kernel resolves these faults by itself, and nobody could copy: use .handlerThread, .inPlace or .mprotect.")
    }
    if space.configuration.inheritsAcrossFork {
      throw PinError(
        .unsupported, operation: "clone", range: addresses,
        advice: "A child of fork() would write into the shared frames unseen: set inheritsAcrossFork to false.")
    }
    let sharing = try sharing(frames)
    let clone = try sharing.clone(self, reuse: reuse, mechanism)
    counters.add(.clones)
    return clone
  }

  /// By what rule a write to a shared page is decided. Of a region that was cloned, what the last ``clone(reuse:mechanism:)`` said.
  public var reusePolicy: ReusePolicy { frames?.policy ?? .exclusive }
}

/// That a region's frames are shared: its part in the session, and what it plugs into the fault path.
final class Sharing: RegionAttachment {
  private let frames: RegionFrames
  private let session: TrackingSession
  private let protection: RegionProtection
  private let shared: SharedFrames
  /// Clones of one region are made one after the other.
  private let participant: Mutex<UInt64?>

  init(frames: RegionFrames, protection: RegionProtection, session: TrackingSession) {
    self.frames = frames
    self.protection = protection
    self.session = session
    shared = SharedFrames(frames: frames)
    participant = Mutex(nil)
  }

  func regionWillUnmap() {
    // In a child of fork() a thread that does not exist may hold the locks.
    guard frames.pool.isOfThisProcess else { return }
    participant.withLock { id in
      if let id { session.remove(id) }
      id = nil
      protection.exclusive { $0.sharing.store(0, ordering: .sequentiallyConsistent) }
    }
  }

  func clone(
    _ region: Region, reuse: ReusePolicy, _ mechanism: WriteTracking.Mechanism
  ) throws(PinError) -> Region {
    try participant.withLock { id throws(PinError) in
      try frames.prepareTarget()
      while true { if let child = try clone(&id, region, reuse, mechanism) { return child } }
    }
  }

  /// `nil` if the region got a sealer meanwhile, which the clone has to have, too.
  private func clone(
    _ id: inout UInt64?, _ region: Region, _ reuse: ReusePolicy, _ mechanism: WriteTracking.Mechanism
  ) throws(PinError) -> Region? {
    // Pages that trap where they are not mapped are copied through the pool's own mapping.
    let seals = region.copyDecision
    if region.backing.mayHaveHugeFrames || region.backing.stored != nil || seals != nil { try frames.mapDirectly() }
    // All that can fail, and all that takes time, before anything is shared.
    let child = unsafe try region.space.mapPool(
      region.backing.stored == nil ? region.backing : .pool,
      PoolExtent(pool: frames.pool, extent: frames.base, isOwner: false, policy: reuse),
      pages: region.pageCount)
    do throws(PinError) {
      guard let childFrames = child.frames else { preconditionFailure("a region of pool frames without frames") }
      try childFrames.prepareTarget()
      let childSeals = try seals?.inherited(by: child)
      var failure: PinError?
      var isOutdated = false
      // The clone has no store to get a page from.
      let supply = region.supply
      try supply?.keepPresent(0..<region.pageCount)
      defer { supply?.mayLeave() }
      try arm(&id, region, mechanism) { domain in
        isOutdated = domain.seals.load(ordering: .acquiring) != seals?.address ?? 0
        if isOutdated { return }
        do throws(PinError) {
          frames.renewTarget()
          try frames.share(with: childFrames)
          if let childSeals { seals?.handOver(to: childSeals) }
          frames.policy = reuse
          let raw = unsafe UInt(bitPattern: Unmanaged.passUnretained(shared).toOpaque())
          domain.sharing.store(raw, ordering: .sequentiallyConsistent)
          domain.density.reset()
        } catch { failure = error }
      }
      frames.recycleExtents()
      if let failure { throw failure }
      if isOutdated {
        try? child.unmap()
        return nil
      }
      try childFrames.mapPieces()
      if childSeals != nil { try Memory.advise(child.addresses, .dontDump) }
      try child.beginSharing(session.activeMechanism ?? mechanism)
      try childSeals?.begin(child)
      return child
    } catch {
      try? child.unmap()
      throw error
    }
  }

  /// Protects the region for sharing, with `armed` at the moment when every page is.
  private func arm(
    _ id: inout UInt64?, _ region: Region, _ mechanism: WriteTracking.Mechanism, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) {
    if let id {
      if mechanism != .automatic, let active = session.activeMechanism, active != mechanism {
        throw PinError(
          .inUse, operation: "clone", range: region.addresses,
          advice: "The region is protected by .\(active), and has one mechanism at a time: ask for .automatic or .\(active)."
        )
      }
      return _ = try session.arm(id, armed: armed)
    }
    id = try session.join(region, mechanism, keepsPages: false, armed: armed)
  }

  /// The same for a clone that nobody has seen yet.
  func begin(_ region: Region, _ mechanism: WriteTracking.Mechanism) throws(PinError) {
    try participant.withLock { id throws(PinError) in
      try arm(&id, region, mechanism) { domain in
        let raw = unsafe UInt(bitPattern: Unmanaged.passUnretained(shared).toOpaque())
        domain.sharing.store(raw, ordering: .sequentiallyConsistent)
      }
    }
  }
}

extension Region {
  fileprivate func sharing(_ frames: RegionFrames, isUntouched: Bool = false) throws(PinError) -> Sharing {
    let protection = try protection()
    let session = try session(protection, isUntouched: isUntouched)
    // A discard that found no protection drops frames that a clone would share.
    _ = unwatchedDiscards.lockExclusive()
    unwatchedDiscards.unlockExclusive()
    return try attachments.findOrMake(Sharing.self) { () throws(PinError) in
      Sharing(frames: frames, protection: protection, session: session)
    }
  }

  fileprivate func beginSharing(_ mechanism: WriteTracking.Mechanism) throws(PinError) {
    guard let frames else { return }
    let sharing = try sharing(frames, isUntouched: true)
    try sharing.begin(self, mechanism)
  }
}

extension RegionFrames {
  /// Counts `child`, which has the same base, as a mapping of every frame of this region. Under the exclusive wrprotect lock.
  ///
  /// Frames that are pinned and exclusive are copied for the child at once, and stay this region's own. While references of a frame are
  /// frozen it gets no mapping either (S3), so this waits for whoever has frozen it, and gives up after a second.
  func share(with child: RegionFrames) throws(PinError) {
    // Until now every frame of the base was this region's own, whatever its word says.
    let wasOwn = unsafe !base.pointee.isShared.exchange(true, ordering: .sequentiallyConsistent)
    child.beginMapping()
    TestHooks.reach(.counted)
    var pinned: [Int] = []
    var deadline = Deadline(seconds: 1)
    var frozen: Int?
    // The child counts as a mapper of all of the base: what it does not map there is taken off again, last, so that no frame ever looks
    // as if nobody had it.
    broken.forEachRun { run in
      for page in run {
        let id = table.extent(page)
        if id == 0 || frozen != nil { continue }
        let extent = unsafe pool.extent(id)
        unsafe share(page, in: extent, wasOwn: false, &pinned)
        guard unsafe extent.pointee.addMapping(page, isExclusive: pinned.last == page, until: &deadline) else {
          frozen = page
          continue
        }
        child.table.setExtent(id, at: page)
        unsafe base.pointee.removeMapping(page)
      }
      child.broken.insert(run)
    }
    recountPieces()
    child.recountPieces()
    unsafe base.pointee.tracked.forEachRun { run in
      for page in run where table.extent(page) == 0 { unsafe share(page, in: base, wasOwn: wasOwn, &pinned) }
    }
    if frozen == nil { frozen = unsafe base.pointee.firstFrozen(at: &deadline) }
    if let frozen {
      pool.noteDead()
      let range = AddressRange(start: addresses.start + UInt(frozen * Memory.pageSize), count: Memory.pageSize)
      throw PinError(
        .timedOut, operation: "clone", range: range,
        advice: "The references of page \(frozen)'s frame are frozen: unfreeze it first.")
    }
    for page in pinned { try copyNow(page, for: child) }
    pool.noteDead()
  }

  private func share(_ page: Int, in extent: Extent.Pointer, wasOwn: Bool, _ pinned: inout [Int]) {
    let word = unsafe extent.pointee.word(page)
    let isOwn = wasOwn || word.flags.contains(.exclusive)
    // Sealed bytes are bound to one page, which opens them in place.
    if (isOwn && word.extra >= FrameCounts.pinBias) || word.flags.contains(.sealed) {
      unsafe extent.pointee.update(page) { word in
        var word = word
        word.flags.insert(.exclusive)
        return word
      }
      return pinned.append(page)
    }
    guard isOwn else { return }
    unsafe extent.pointee.update(page) { word in
      var word = word
      word.flags.remove(.exclusive)
      return word
    }
  }

  /// Gives the child its own copy of a frame that is pinned here.
  private func copyNow(_ page: Int, for child: RegionFrames) throws(PinError) {
    guard let target = unsafe child.targetExtent, unsafe child.claimTarget(page..<page + 1, target) else {
      throw PinError(.inUse, operation: "clone", range: addresses, advice: "A pinned page could not be copied; try again.")
    }
    do throws(PinError) {
      let place = unsafe target.pointee.place(of: page)
      let source = try directAddresses(of: page)
      let result = Memory.write(source, file: pool.descriptor(of: place), offset: place.offset)
      try PinError.check(result, "copy a pinned page", source)
    } catch {
      unsafe child.unclaimTarget(page..<page + 1, target)
      throw error
    }
    unsafe child.move(page..<page + 1, to: target)
  }

  /// Where the pool itself maps the frame of a page.
  func directAddresses(of page: Int) throws(PinError) -> AddressRange {
    let extent = unsafe extent(of: page)
    let start = unsafe try pool.directMap(extent) + UInt(page * Memory.pageSize)
    return AddressRange(start: start, count: Memory.pageSize)
  }

  /// Maps the pages that are not in the base where they are. Nobody has seen the region yet.
  func mapPieces() throws(PinError) {
    try unsafe forEachPiece { run, extent throws(PinError) in
      let range = AddressRange(
        start: addresses.start + UInt(run.lowerBound * Memory.pageSize), count: run.count * Memory.pageSize)
      try PinError.check(unsafe pool.map(run, of: extent.pointee, at: range.start), "mmap", range)
      try Memory.advise(range, .dontFork)
    }
  }
}
