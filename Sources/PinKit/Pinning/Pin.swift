internal import Synchronization

/// A pin of one page: its memory stays in place, and can be read, or read and written, through ``withUnsafeBytes(_:)`` whatever becomes of
/// the page that maps it.
///
/// The bytes are the pool's own mapping of the frame. A write through a pin goes around every write protection, as a device's does:
/// a pin for writing therefore first gives the page a frame of its own, and a clone copies that frame at once. Noncopyable; dropping it
/// unpins.
@safe public struct Pin: ~Copyable, @unchecked Sendable {  // the frame stays as long as the reference
  public enum Access: Sendable, Hashable {
    case reading
    case writing
  }
  public let access: Access
  private let reference: FrameReference
  private let start: UInt

  fileprivate init(_ reference: consuming FrameReference, _ access: Access, start: UInt) {
    self.reference = reference
    self.access = access
    self.start = start
  }

  public var frame: Frame { reference.frame }
  public var state: FrameState { reference.state }

  /// Calls `body` with the bytes of the frame; the pointer is valid until the pin goes.
  public func withUnsafeBytes<Result>(_ body: (UnsafeRawBufferPointer) throws -> Result) rethrows -> Result {
    try unsafe body(UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: start), count: Memory.pageSize))
  }

  /// The same for writing.
  ///
  /// - Throws: ``PinError`` `.accessDenied` through a pin for reading.
  public func withUnsafeMutableBytes<Result>(_ body: (UnsafeMutableRawBufferPointer) throws -> Result) throws -> Result {
    guard access == .writing else {
      throw PinError(.accessDenied, operation: "write through a pin of \(frame)", advice: "Pin the page for writing.")
    }
    return try unsafe body(
      UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: start), count: Memory.pageSize))
  }
}

extension Region {
  /// Pins the frame of a page.
  ///
  /// A pin for writing counts as a write: sharing is broken first, trackers report the page, snapshots get its bytes. A pin for
  /// reading of a shared frame gives this region its own copy first where the reuse policy says so
  /// (``ReusePolicy/pinsBreakSharing``), so that nobody can read through it what others write later (W3), and what the owner writes is
  /// what it reads (W4).
  ///
  /// - Throws: ``PinError``: `.unsupported` for memory that is not of a pool, `.outOfBounds`, `.unmapped`, `.limitReached` if the frame has a
  ///   quarter of a million pins, `.timedOut`, `.outOfMemory`, `.wouldDeadlock` from a fault callback. Blocks while the region is
  ///   being protected.
  public func pin(_ page: Int, for access: Pin.Access) throws(PinError) -> Pin {
    let frames = try pageFrames("pin", page)
    try requireOutsideFaultPath("pin")
    try enter("pin")
    defer { leave() }
    let protection = try protection()
    let begun = Kernel.now()
    while true {
      try protection.throwIfFailed("pin")
      if let reference = try protection.pinOnce(page, frames, access) {
        let start = unsafe try frames.pool.directMap(reference.extent) + UInt(page * Memory.pageSize)
        return Pin(reference, access, start: start)
      }
      if Kernel.now() - begun > Kernel.nanoseconds(space.configuration.patience) {
        throw PinError(
          .timedOut, operation: "pin", range: addressesUnchecked(of: page..<page + 1),
          advice:
            "The page could not get a frame of its own: memory is short, a snapshot is at its limit, or its frame is frozen."
        )
      }
      Kernel.pause(nanoseconds: 50_000)
    }
  }
}

extension RegionProtection {
  /// One try under the shared lock, which keeps clones out: whether the frame is shared stays as it was decided.
  fileprivate func pinOnce(_ page: Int, _ frames: RegionFrames, _ access: Pin.Access) throws(PinError) -> FrameReference? {
    unsafe try pinOnce(page, frames, access, domain.pointee)
  }

  private func pinOnce(
    _ page: Int, _ frames: RegionFrames, _ access: Pin.Access, _ domain: borrowing FaultDomain
  ) throws(PinError) -> FrameReference? {
    let outcome = Kernel.withSignalsBlocked {
      domain.lock.withShared { hold in takePin(page, frames, access, domain, holding: hold) }
    }
    if outcome == .denied {
      throw PinError(
        .accessDenied, operation: "pin", range: addresses,
        advice: "protect(_:to:) took the right to write away from page \(page).")
    }
    if outcome == .full {
      throw PinError(.limitReached, operation: "pin", range: addresses, advice: "The frame has too many pins.")
    }
    guard case .taken(let raw) = outcome else { return nil }
    return unsafe FrameReference(
      pool: frames.pool, extent: Extent.Pointer(bitPattern: raw)!, index: page, amount: FrameCounts.pinBias)
  }

  private enum Outcome: Equatable {
    case taken(extent: UInt)
    case notNow, denied, full
  }

  private func takePin(
    _ page: Int, _ frames: RegionFrames, _ access: Pin.Access, _ domain: borrowing FaultDomain,
    holding hold: borrowing WriteProtectLock.SharedHold
  ) -> Outcome {
    let isArmed = domain.delivery.load(ordering: .acquiring) != .none
    let counts = unsafe frames.extent(of: page).pointee.counts(page)
    if isArmed, access == .writing || (frames.policy.pinsBreakSharing && isShared(counts, frames.policy)) {
      switch FaultPath.resolve(page: page, in: domain, holding: hold) {
      case .opened, .alreadyOpen: break
      case .denied: return .denied
      case .gone, .retry, .held, .elsewhere, .failed: return .notNow
      }
    }
    // With the claim: a fault beside it that takes the page along would find it pinned and not yet noted as its owner's, and copy it.
    _ = domain.table.claim(page)
    defer { domain.table.releaseClaim(page) }
    let extent = unsafe frames.extent(of: page)
    guard unsafe extent.pointee.tryGet(page, FrameCounts.pinBias) else {
      return unsafe extent.pointee.word(page).extra > FrameWord.maximumExtra - FrameCounts.pinBias ? .full : .notNow
    }
    TestHooks.reach(.pinned, page: page)
    // Another fault moved the page meanwhile.
    guard unsafe frames.extent(of: page) == extent else {
      unsafe extent.pointee.put(page, FrameCounts.pinBias)
      return .notNow
    }
    // From now on the frame is known as this region's own: sharing it copies it at once.
    let now = unsafe extent.pointee.counts(page)
    let isOwn = now.mappings == 1 && (now.isExclusive || frames.policy.pinsBreakSharing)
    // A clone of a clone may count as a mapping for a moment. The next clone of this region would take the frame for a shared one, and
    // the owner's writes would leave the pin behind.
    if access == .reading, !isOwn, frames.policy.pinsBreakSharing {
      unsafe extent.pointee.put(page, FrameCounts.pinBias)
      return .notNow
    }
    if access == .writing || isOwn {
      unsafe extent.pointee.update(page) { word in
        var word = word
        word.flags.insert(.exclusive)
        return word
      }
    }
    return .taken(extent: UInt(bitPattern: extent))
  }

  /// Whether somebody else may read the frame, now or through a pin that outlived its mapping.
  private func isShared(_ counts: FrameCounts, _ policy: ReusePolicy) -> Bool {
    policy == .mapcount ? counts.mappings > 1 : !counts.isExclusive && counts.references > 1
  }
}
