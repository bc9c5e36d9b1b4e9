internal import Synchronization

/// Pins with the wrprotect lock shared, which keeps clones, collections and snapshots out: what was decided stays so.
extension Region {
  /// Pins page after page, a slice of them under one hold of the lock.
  func pinInSteps(
    _ pages: Range<Int>, _ options: PinOptions, _ protection: RegionProtection, _ pieces: inout [PinDetail.Piece]
  ) throws(PinError) {
    let attempt = PinAttempt(region: self, protection: protection, options: options)
    var page = pages.lowerBound
    var deadline = Deadline(seconds: space.configuration.patience)
    while page < pages.upperBound {
      try protection.throwIfFailed("pin")
      let slice = page..<min(pages.upperBound, page + 64)
      // What the store says is the pin's error, and no signal.
      if let supply, options.mayWait {
        try supply.prepare(slice.lowerBound..<slice.lowerBound + 1, toWrite: options.isForWriting)
      }
      let (end, obstacle) = try attempt.pin(slice, &pieces)
      if end > page { deadline = Deadline(seconds: space.configuration.patience) }
      page = end
      guard let obstacle else { continue }
      switch obstacle {
      case .denied:
        throw refusal(
          .accessDenied, page, "protect(_:to:) took the right to \(options.isForWriting ? "write" : "read") away.")
      case .full: throw .tooManyPins(self, page)
      case .sealed(let refusal): if let error = seals?.error(refusal, page) { throw error }
      case .notNow, .dropping: break
      }
      if !options.mayWait { throw refusal(.wouldBlock, page, "It would have to be faulted in, or waited for.") }
      if gate.isClosed { throw refusal(.unmapped, page, "") }
      if deadline.isOver() {
        throw refusal(
          .timedOut, page,
          "The page could not get a frame of its own: memory is short, a snapshot is at its limit, or its frame is frozen.")
      }
      if obstacle == .dropping { pinGate.waitBriefly() } else { Kernel.pause(nanoseconds: 50_000) }
    }
  }

  private func refusal(_ code: PinError.Code, _ page: Int, _ advice: String) -> PinError {
    PinError(code, operation: "pin page \(page)", range: addressesUnchecked(of: page..<page + 1), advice: advice)
  }
}

extension PinError {
  static func tooManyPins(_ region: Region, _ page: Int) -> PinError {
    PinError(
      .limitReached, operation: "pin page \(page)", range: region.addressesUnchecked(of: page..<page + 1),
      advice: "The page, or its frame, has too many pins: drop some.")
  }
}

/// One way to pin pages of a region.
struct PinAttempt {
  let region: Region
  let protection: RegionProtection
  let options: PinOptions

  enum Obstacle: Equatable {
    case notNow, dropping, denied, full
    case sealed(AccessRefusal)
  }

  /// Pins pages until one cannot be; returns which that is, and why.
  func pin(_ pages: Range<Int>, _ pieces: inout [PinDetail.Piece]) throws(PinError) -> (end: Int, Obstacle?) {
    // Made outside of the lock: it may take memory.
    if let frames = region.frames {
      // A page that leaves a shared frame for a reader is compared with it where the pool maps both.
      let isCompared = unsafe !options.isForWriting && frames.targetExtent != nil
      if isCompared { try frames.mapDirectly() } else { try frames.mapBase() }
    }
    region.seals?.prepareThread()
    var taken: [(page: Int, extent: UInt)] = []
    taken.reserveCapacity(pages.count)
    let obstacle = Kernel.withSignalsBlocked { unsafe pin(pages, &taken, protection.domain.pointee) }
    do throws(PinError) {
      for (page, extent) in taken { try append(page, extent, &pieces) }
    } catch {
      for (page, extent) in taken where !pieces.contains(where: { $0.pages.contains(page) }) {
        region.memory.dropPins(page..<page + 1, forWriting: options.isForWriting, extent: extent)
      }
      throw error
    }
    return (pages.lowerBound + taken.count, obstacle)
  }

  private func append(_ page: Int, _ extent: UInt, _ pieces: inout [PinDetail.Piece]) throws(PinError) {
    if let last = pieces.last, last.extent == extent {
      pieces[pieces.count - 1].pages = last.pages.lowerBound..<page + 1
      return
    }
    var start = region.addressesUnchecked(of: page..<page + 1).start
    if let frames = region.frames, let pointer = unsafe Extent.Pointer(bitPattern: extent) {
      start = unsafe try frames.pool.directMap(pointer) + UInt(page * Memory.pageSize)
    }
    pieces.append(PinDetail.Piece(pages: page..<page + 1, extent: extent, start: start))
  }

  private func pin(
    _ pages: Range<Int>, _ taken: inout [(page: Int, extent: UInt)], _ domain: borrowing FaultDomain
  ) -> Obstacle? {
    var found = taken
    defer { taken = found }
    if options.mayWait { return domain.lock.withShared { hold in pinAll(pages, &found, domain, holding: hold) } }
    let result = domain.lock.withSharedIfFree { hold in pinAll(pages, &found, domain, holding: hold) }
    switch result {
    case .some(let obstacle): return obstacle
    case .none: return .notNow
    }
  }

  private func pinAll(
    _ pages: Range<Int>, _ taken: inout [(page: Int, extent: UInt)], _ domain: borrowing FaultDomain,
    holding hold: borrowing WriteProtectLock.SharedHold
  ) -> Obstacle? {
    for page in pages {
      let (extent, obstacle) = take(page, domain, holding: hold)
      if let obstacle { return obstacle }
      taken.append((page, extent))
    }
    return nil
  }

  /// One page. With the claim: a fault beside it that takes the page along would find it pinned and not yet noted as its owner's, and
  /// copy it.
  private func take(
    _ page: Int, _ domain: borrowing FaultDomain, holding hold: borrowing WriteProtectLock.SharedHold
  ) -> (extent: UInt, Obstacle?) {
    if region.pinGate.isDropping { return (0, .dropping) }
    if let obstacle = prepare(page, domain, holding: hold) { return (0, obstacle) }
    let table = domain.table
    let before = options.mayWait ? table.claim(page) : table.tryClaim(page)
    if !options.mayWait, before.contains(.claimed) { return (0, .notNow) }
    defer { table.releaseClaim(page) }
    if isDenied(before) { return (0, .denied) }
    // With a claim it cannot go any more, and once it is counted it stays.
    if domain.withSource({ $0.isPresent(page) }) == false { return (0, .notNow) }
    guard table.addPin(page, forWriting: options.isForWriting, refused: 0, required: 0) != nil else { return (0, .full) }
    table.pinned.insertVisibly(page)
    var extent: UInt = 0
    if let frames = region.frames {
      let obstacle = takeFrame(page, frames, &extent)
      if let obstacle {
        table.removePin(page, forWriting: options.isForWriting)
        return (0, obstacle)
      }
    }
    // Pending before it is opened (S1).
    if domain.hasSeals, let refusal = region.seals?.letIn(page, isFault: false, in: domain) {
      region.memory.dropPins(page..<page + 1, forWriting: options.isForWriting, extent: extent)
      return (0, refusal == .held ? .notNow : .sealed(refusal))
    }
    guard !region.pinGate.isDropping else {
      region.memory.dropPins(page..<page + 1, forWriting: options.isForWriting, extent: extent)
      return (0, .dropping)
    }
    return (extent, nil)
  }

  private func isDenied(_ entry: PageTable.Entry) -> Bool {
    entry.contains(.readDenied) || (options.isForWriting && entry.contains(.writeDenied))
  }

  /// Takes the fault that the pin needs, if it needs one.
  private func prepare(
    _ page: Int, _ domain: borrowing FaultDomain, holding hold: borrowing WriteProtectLock.SharedHold
  ) -> Obstacle? {
    let entry = domain.table[page]
    if isDenied(entry) { return .denied }
    // Asked before a fault is taken: what the fault path refuses becomes a signal.
    if domain.hasSeals, let obstacle = open(page, domain) { return obstacle }
    let delivery = domain.delivery.load(ordering: .acquiring)
    if delivery == .none || delivery == .asynchronous { return nil }
    if options.isForWriting {
      if entry.contains(.open) { return nil }
    } else {
      guard let frames = region.frames, mustLeaveShared(page, frames) else { return nil }
    }
    if options.contains(.fast) { return .notNow }
    let resolution =
      options.isForWriting
      ? FaultPath.resolve(page: page, waits: options.mayWait, in: domain, holding: hold)
      : FaultPath.unshare(page: page, waits: options.mayWait, in: domain, holding: hold)
    switch resolution {
    case .opened, .alreadyOpen: return nil
    case .denied: return .denied
    case .gone, .retry, .held, .elsewhere, .failed: return .notNow
    }
  }

  private func open(_ page: Int, _ domain: borrowing FaultDomain) -> Obstacle? {
    let before = options.mayWait ? domain.table.claim(page) : domain.table.tryClaim(page)
    if !options.mayWait, before.contains(.claimed) { return .notNow }
    defer { domain.table.releaseClaim(page) }
    guard let refusal = region.seals?.letIn(page, isFault: false, in: domain) else { return nil }
    return refusal == .held ? .notNow : .sealed(refusal)
  }

  private func mustLeaveShared(_ page: Int, _ frames: RegionFrames) -> Bool {
    guard frames.policy.pinsBreakSharing || options.contains(.unshare) else { return false }
    let counts = unsafe frames.extent(of: page).pointee.counts(page)
    // Shared with who may read the frame, now or through a pin that outlived its mapping.
    return frames.policy == .mapcount ? counts.mappings > 1 : !counts.isExclusive && counts.references > 1
  }

  /// Takes the references of a pin; the page is claimed.
  private func takeFrame(_ page: Int, _ frames: RegionFrames, _ found: inout UInt) -> Obstacle? {
    let extent = unsafe frames.extent(of: page)
    guard unsafe extent.pointee.tryGet(page, FrameCounts.pinBias, waits: options.mayWait) else {
      return unsafe extent.pointee.word(page).extra > FrameWord.maximumExtra - FrameCounts.pinBias ? .full : .notNow
    }
    TestHooks.reach(.pinned, page: page)
    // From now on the frame is known as this region's own: sharing it copies it at once.
    let now = unsafe extent.pointee.counts(page)
    let breaksSharing = frames.policy.pinsBreakSharing || options.contains(.unshare)
    let isOwn = now.mappings == 1 && (now.isExclusive || breaksSharing)
    // Another fault moved the page meanwhile. Or a clone of a clone counts as a mapping for a moment: the next clone of this region would
    // take the frame for a shared one, and the owner's writes would leave the pin behind.
    guard unsafe frames.extent(of: page) == extent, options.isForWriting || isOwn || !breaksSharing else {
      unsafe extent.pointee.put(page, FrameCounts.pinBias)
      return .notNow
    }
    if options.isForWriting || isOwn {
      unsafe extent.pointee.update(page) { word in
        var word = word
        word.flags.insert(.exclusive)
        return word
      }
    }
    found = UInt(bitPattern: extent)
    return nil
  }
}
