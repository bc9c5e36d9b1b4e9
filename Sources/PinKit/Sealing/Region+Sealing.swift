internal import Logging
internal import Synchronization

/// How sealed pages behave.
public struct SealingOptions: Sendable, Hashable {
  public enum OnAccess: Sendable, Hashable {
    /// Touching a sealed page opens it.
    case open
    /// Touching one is an error: SIGBUS through a pointer, `.sealed` from a call, until ``Region/makeAccessible(_:)`` opens it.
    case fail
  }
  public var onAccess = OnAccess.open
  /// Pages that nobody has touched for this long, in seconds, are sealed again, after twice as long at the latest; `nil`: never by themselves.
  /// A page that is touched again and again meanwhile takes a fault now and then, which is how that is known.
  public var idleSeconds: Double?

  public init(onAccess: OnAccess = .open, idleSeconds: Double? = nil) {
    self.onAccess = onAccess
    self.idleSeconds = idleSeconds
  }
}

/// What is needed to open a sealed page outside of its region, with the same sealer.
public struct SealRecord: Sendable, Hashable {
  public var identity: PageIdentity
  /// What the sealer kept: ``PageSealer/recordSize`` bytes.
  public var bytes: [UInt8]
  static let headerSize = 24
}

extension Region {
  /// Lets pages of the region be sealed from now on.
  ///
  /// The region's memory is left out of core dumps. It is protected by handler threads, as a clone's is; where it is protected in another way
  /// already, stop that first.
  ///
  /// Of a call of another thread at the same moment that protects the region (a snapshot, a clone, a tracker) one comes first. If that is this
  /// one, the other knows of the sealer; otherwise this one throws `.inUse`, and nothing has changed.
  ///
  /// - Throws: ``PinError``: `.unsupported` unless the region is of `.pool` memory on small pages, `.inUse` if it has a sealer or is tracked,
  ///   `.invalidArgument` for an idle time that is not above 0 or a record of more than 4 KiB, `.permissionDenied`, `.outOfMemory`, `.unmapped`.
  public func setSealer(_ sealer: any PageSealer, _ options: SealingOptions = .init()) throws(PinError) {
    try requireOutsideFaultPath("setSealer")
    try enter("setSealer")
    defer { leave() }
    guard !space.configuration.inheritsAcrossFork else {
      throw PinError(
        .unsupported, operation: "setSealer", range: addresses,
        advice: "A child of fork() would read and write the shared frames unseen: set inheritsAcrossFork to false.")
    }
    guard case .pool(.never) = backing.kind, frames != nil else {
      throw PinError(
        .unsupported, operation: "setSealer", range: addresses,
        advice: "The backing is \(backing): sealed pages are of .pool memory on small pages.")
    }
    guard options.idleSeconds ?? 1 > 0, sealer.recordSize >= 0, sealer.recordSize <= 4096 else {
      throw PinError(
        .invalidArgument, operation: "setSealer", range: addresses,
        advice: "The idle time is above 0 seconds, and a sealer's record has at most 4096 bytes.")
    }
    let protection = try protection()
    // A discard that found no protection drops bytes that could be sealed by then.
    _ = unwatchedDiscards.lockExclusive()
    unwatchedDiscards.unlockExclusive()
    guard protection.slotIndex == nil, attachments.find(AccessDecision.self) == nil else {
      throw .hasSealer(addresses)
    }
    let pages = try SealedPages(region: self, sealer: sealer, options: options)
    guard try attachments.findOrMake(AccessDecision.self, { pages }) === pages else { throw .hasSealer(addresses) }
    do throws(PinError) {
      let snapshots = try SnapshotSet.of(self)
      let first = TrackingSession.FirstParticipant(
        willProtect: { () throws(PinError) in
          try pages.connect()
          snapshots.keepNoCopies()
        },
        didFail: { pages.disconnect(self) })
      try pages.begin(self, first: first)
    } catch {
      try attachments.findOrMake(RefusedSealers.self) { RefusedSealers() }.keep(pages)
      attachments.remove(AccessDecision.self)
      throw error
    }
  }

  /// Seals pages: their bytes exist nowhere in memory but sealed (S5), until somebody who may touches them.
  ///
  /// Secondary MMUs give their translations up first. A page that somebody uses is `.busy`: one with a pin, I/O or a lookup, one that a clone
  /// shares, and one of which an open snapshot has the plain bytes. Subscribers hear of one change (N10). Up to 256 pages at a time are looked at together: if one is busy none of
  /// them changes; of a range that is larger all before the range of the error are sealed. Where the sealer itself fails, the pages before that are
  /// sealed. Pages that are sealed already, or poisoned, stay as they are.
  ///
  /// Blocks for a subscriber. What the program itself copied elsewhere, and what a system call has in flight on plain pointers, cannot be known.
  ///
  /// - Throws: ``PinError``: `.busy`, `.unsupported` without a sealer, `.outOfBounds`, `.unmapped`, `.keyGone`, `.limitReached`,
  ///   `.subscriberFailed`, `.timedOut`, `.wouldDeadlock` from a fault callback.
  public func seal(_ pages: Range<Int>) throws(PinError) {
    _ = try addresses(of: pages)
    try requireOutsideFaultPath("seal")
    try enter("seal")
    defer { leave() }
    try requireSeals("seal").seal(pages)
  }

  /// Opens pages. They stay open until they are sealed again, by ``seal(_:)`` or because nobody touched them: pin them to keep them so.
  ///
  /// - Throws: ``PinError``: `.tampered` if the sealed bytes of a page, or its record, were changed: it never opens again, and whoever
  ///   touches it gets SIGBUS, until it is discarded; `.keyGone`, `.unsupported` without a sealer, `.outOfBounds`, `.unmapped`, `.timedOut` where a
  ///   snapshot has no room for the sealed bytes.
  public func makeAccessible(_ pages: Range<Int>) throws(PinError) {
    _ = try addresses(of: pages)
    try requireOutsideFaultPath("makeAccessible")
    try enter("makeAccessible")
    defer { leave() }
    try requireSeals("makeAccessible").makeAccessible(pages, insists: true)
  }

  /// Whether a page is sealed now.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.notInherited`.
  public func isSealed(_ page: Int) throws(PinError) -> Bool {
    try requirePage(page)
    guard space.isOfThisProcess else { throw .notInherited("isSealed") }
    return seals?.isSealed(page) ?? false
  }

  private func requireSeals(_ operation: String) throws(PinError) -> SealedPages {
    if let seals = seals as? SealedPages { return seals }
    throw PinError(
      .unsupported, operation: operation, range: addresses, advice: "The region has no sealer: call setSealer(_:_:) first.")
  }
}

extension PinError {
  fileprivate static func hasSealer(_ range: AddressRange) -> PinError {
    PinError(
      .inUse, operation: "setSealer", range: range,
      advice: "The region has a sealer, or is tracked, cloned or snapshotted already: set the sealer first.")
  }
}

extension SealedPages {
  /// Makes itself known to the fault path, before anything is protected. The region's calls know of it when all is.
  func connect() throws(PinError) {
    try frames.mapDirectly()
    try Memory.advise(addresses, .dontDump)
    unsafe protection.domain.pointee.hasMinorFaults.store(true, ordering: .sequentiallyConsistent)
    unsafe protection.domain.pointee.seals.store(address, ordering: .sequentiallyConsistent)
  }

  fileprivate func disconnect(_ region: Region) {
    region.hasSeals.store(false, ordering: .sequentiallyConsistent)
    // A reader that died may have taken the lock with it.
    if protection.failure == nil {
      protection.exclusive { Self.forget($0) }
    } else {
      unsafe Self.forget(protection.domain.pointee)
    }
  }

  private static func forget(_ domain: borrowing FaultDomain) {
    domain.seals.store(0, ordering: .sequentiallyConsistent)
    domain.hasMinorFaults.store(false, ordering: .sequentiallyConsistent)
  }

  /// - Parameter first: Given where nothing may protect the region yet, unlike a clone that somebody else has begun to protect.
  func begin(_ region: Region, first: TrackingSession.FirstParticipant?) throws(PinError) {
    let id = try session.join(region, .handlerThread, keepsPages: false, first: first) { _ in
      region.hasSeals.store(true, ordering: .sequentiallyConsistent)
    }
    participant.withLock { $0 = id }
    let period = options.idleSeconds.map(Kernel.nanoseconds)
    let last = Shared(Kernel.now())
    protection.handler.everyTick { [weak self] in
      guard let self, !self.isOver.load(ordering: .acquiring) else { return false }
      self.logNews()
      if let period, Kernel.now() - last.time >= period {
        last.time = Kernel.now()
        self.sealIdle()
      }
      return true
    }
  }

  private func logNews() {
    let page = poisonedNews.exchange(0, ordering: .relaxed) - 1
    guard page >= 0 else { return }
    protection.handler.logger.critical(
      "page \(page) of \(addresses) was tampered with while it was sealed, and stays closed for good")
  }

  /// Of the watchdog's thread alone.
  private final class Shared: @unchecked Sendable {
    var time: UInt64
    init(_ time: UInt64) { self.time = time }
  }
}

/// Sealers that could not be set. A signal handler may still look at one: they stay as long as the region.
private final class RefusedSealers: Sendable {
  private let list = Mutex<[SealedPages]>([])
  func keep(_ pages: SealedPages) { list.withLock { $0.append(pages) } }
}
