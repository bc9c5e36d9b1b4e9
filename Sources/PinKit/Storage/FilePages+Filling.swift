internal import Synchronization

/// Bringing pages in.
extension FilePages {
  /// Brings a page in that somebody touches, and its neighbours as far as they are nobody's business at this moment.
  ///
  /// - Parameter noteClaims: Told of the pages that are claimed, before the store is asked.
  func bring(
    _ page: Int, through buffer: AddressRange, in domain: borrowing FaultDomain, noteClaims: (Range<Int>) -> Void
  ) -> FaultResolution {
    _ = table.claim(page)
    defer { table.releaseClaim(page) }
    if filling.contains(page) { return .elsewhere }
    if refused.contains(page) { return .gone }
    if isKept(page), let resolution = mapAgain(page, in: domain) { return resolution }
    let window = windows.window(at: page)
    var first = page
    while first > window.pages.lowerBound, tryTake(first - 1) { first -= 1 }
    var end = page + 1
    while end < min(window.pages.upperBound, pageCount), tryTake(end) { end += 1 }
    let pages = first..<end
    noteClaims(pages)
    defer { for other in pages where other != page { table.releaseClaim(other) } }
    windows.note(window.stream, end: end, size: window.size)
    if unsafe store.readNow(pages, into: Self.bytes(of: buffer, pages.count)) {
      let resolution = install(pages, from: buffer.start, in: domain)
      if resolution != .refused { return resolution == .done ? .opened : .gone }
    }
    filling.insert(pages)
    if ask(.fill, page, pages) { return .elsewhere }
    filling.remove(pages)
    return .gone
  }

  private func tryTake(_ page: Int) -> Bool {
    if present.contains(page) || filling.contains(page) || refused.contains(page) { return false }
    if table.tryClaim(page).contains(.claimed) { return false }
    if !present.contains(page), !filling.contains(page) { return true }
    table.releaseClaim(page)
    return false
  }

  static func bytes(of buffer: AddressRange, _ pages: Int) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: buffer.start), count: pages * Memory.pageSize)
  }

  enum Installation {
    case done, again
    /// There is no memory for it, or no protection any more.
    case refused
  }

  /// Maps the bytes at `source` as `pages`, write-protected, and wakes who waits. Pages keep the bytes that they were given before, and may have
  /// been changed since; what nobody put there goes.
  func install(_ pages: Range<Int>, from source: UInt, in domain: borrowing FaultDomain) -> Installation {
    let all = domain.addresses(of: pages)
    var done = 0
    var step = all.count
    // The last page for which room was made.
    var emptied = -1
    while done < all.count {
      let rest = AddressRange(start: all.start + UInt(done), count: min(step, all.count - done))
      var (result, bytes) = domain.copy(source + UInt(done), to: rest)
      if result == .refused(errno: UffdResult.exists) {
        let page = pages.lowerBound + done / Memory.pageSize
        (result, bytes) =
          page == emptied ? putInPlace(page, from: source + UInt(done), in: domain) : takeOver(page, in: domain)
        emptied = page
      }
      switch result {
      case .done:
        let start = pages.lowerBound + done / Memory.pageSize
        placed.insert(start..<start + bytes / Memory.pageSize)
        present.insert(start..<start + bytes / Memory.pageSize)
        counters.add(.suppliedPages, bytes / Memory.pageSize)
        done += bytes
      case .again:
        counters.add(.retries)
        return .again
      case .gone where step > Memory.pageSize:
        // The kernel fills one mapping at a time, and pages that went to other frames have mappings of their own.
        step = Memory.pageSize
      case .gone where domain.needsRegistration.load(ordering: .sequentiallyConsistent):
        // The page went to another frame since the message was sent, and is there: nothing traps in the mapping that it has now.
        wake(pages.lowerBound + done / Memory.pageSize..<pages.lowerBound + done / Memory.pageSize + 1)
        done += step
      case .gone where domain.delivery.load(ordering: .acquiring) != .none:
        domain.fail(.mappingChanged, errno: result.errno)
        return .refused
      case .gone, .refused: return .refused
      }
    }
    return .done
  }

  // MARK: What the pool has already

  /// Whether what the pool has of a page that is claimed, or marked as `filling`, are its bytes. Those that the store has, too, are not
  /// trusted once their mapping is gone, unless others have the frame: the store's are right.
  private func isKept(_ page: Int) -> Bool {
    placed.contains(page) && (present.contains(page) || !isClean(page) || isPinned(page) || isHeld(page))
  }

  /// Whether others have the page's frame: a clone, or a lookup.
  private func isHeld(_ page: Int) -> Bool {
    unsafe frames.extent(of: page).pointee.counts(page).references > 1
  }

  /// Maps what the pool has of a page, protected: other code, or the kernel, has dropped the mapping alone. `nil` if it has nothing.
  private func mapAgain(_ page: Int, in domain: borrowing FaultDomain) -> FaultResolution? {
    let (result, bytes) = domain.mapExisting(pageAddresses(page))
    switch result {
    case .done where bytes > 0:
      present.insert(page..<page + 1)
      wake(page..<page + 1)
      return .opened
    case .done, .again: return .gone
    case .gone where domain.needsRegistration.load(ordering: .sequentiallyConsistent):
      // It went to another frame since the message was sent: nothing traps in the mapping that it has now.
      wake(page..<page + 1)
      return .gone
    case .gone, .refused: return nil
    }
  }

  /// Makes room for a page for which the pool has something, or maps that if it is the page's. How many bytes are there now: after none, fill
  /// it again.
  private func takeOver(_ page: Int, in domain: borrowing FaultDomain) -> (UffdResult, bytes: Int) {
    guard isKept(page) else {
      let extent = unsafe frames.extent(of: page)
      // In one step, which fails if anybody has had it since a moment ago (P5). What nobody put there nobody else can have.
      let isFrozen = unsafe extent.pointee.freeze(page, expecting: 1)
      if !isFrozen, placed.contains(page) { return mapAndWake(page, in: domain) }
      defer { if isFrozen { unsafe extent.pointee.unfreeze(page) } }
      // It may be mapped by who was faster than the registration, or locked: a hole is punched all the same.
      let result = unsafe frames.pool.punch(extent.pointee, page..<page + 1)
      TestHooks.reach(.punched, page: page)
      return (UffdResult(result), 0)
    }
    return mapAndWake(page, in: domain)
  }

  /// The same where the pool has something again, or still, as a part of a huge page: nothing is mapped any more, and nobody sees how the bytes
  /// change.
  private func putInPlace(_ page: Int, from source: UInt, in domain: borrowing FaultDomain) -> (UffdResult, bytes: Int) {
    let place = unsafe frames.extent(of: page).pointee.place(of: page)
    let bytes = AddressRange(start: source, count: Memory.pageSize)
    let written = Memory.write(bytes, file: frames.pool.descriptor(of: place), offset: place.offset)
    return written == 0 ? mapAndWake(page, in: domain) : (UffdResult(written), 0)
  }

  private func mapAndWake(_ page: Int, in domain: borrowing FaultDomain) -> (UffdResult, bytes: Int) {
    let (result, bytes) = domain.mapExisting(pageAddresses(page))
    if result == .refused(errno: UffdResult.noPage) { return (.done, 0) }
    if bytes > 0 { domain.wake(pageAddresses(page)) }
    return (result, bytes)
  }

  /// In pages: how many are claimed at a time.
  private static let strangers = 512

  /// Frees what the kernel filled the region's mapping with as it was made, under `mlockall(MCL_FUTURE)`: what is mapped never traps. From
  /// here on nothing gets mapped but by PinKit.
  func dropStrangers() throws(PinError) {
    for run in unsafe try frames.pool.populatedRuns(of: frames.base.pointee) {
      var next = run.lowerBound
      while next < run.upperBound {
        let part = next..<min(run.upperBound, next + Self.strangers)
        next = part.upperBound
        try PinError.check(shared { _ in dropStrangers(part) }, "fallocate(PUNCH_HOLE)", addresses)
      }
    }
  }

  private func dropStrangers(_ pages: Range<Int>) -> CInt {
    for page in pages { _ = table.claim(page) }
    defer { for page in pages { table.releaseClaim(page) } }
    var start = pages.lowerBound
    for page in pages.lowerBound...pages.upperBound {
      // Another thread that locks memory at this moment has had some of them filled already.
      let stops = page == pages.upperBound || placed.contains(page) || filling.contains(page)
      guard stops else { continue }
      if start < page {
        let result = unsafe frames.pool.punch(frames.base.pointee, start..<page)
        if result != 0 { return result }
      }
      start = page + 1
    }
    return 0
  }

  // MARK: On a thread that may wait

  /// Brings `pages` in, which are marked as `filling`. Where the store cannot read them all it is asked for the one that somebody waits for.
  func fill(_ pages: Range<Int>, for page: Int, through buffer: AddressRange) {
    do throws(PinError) {
      unsafe try store.read(pages, into: Self.bytes(of: buffer, pages.count))
    } catch {
      guard pages.count > 1 else { return refuse(page, error, .none) }
      let others = [pages.lowerBound..<page, page + 1..<pages.upperBound].filter { !$0.isEmpty }
      for range in others { giveUp(range) }
      return fill(page..<page + 1, for: page, through: buffer)
    }
    if let error = installPatiently(pages, from: buffer.start) {
      for other in pages where other != page { giveUp(other..<other + 1) }
      if !present.contains(page) { return refuse(page, error, .none) }
    }
    giveUp(pages)
  }

  /// Lets others at `pages`; whoever waits for one that is not there faults again.
  func giveUp(_ pages: Range<Int>) {
    filling.remove(pages)
    wake(pages)
  }

  /// Installs pages that are marked as `filling`; `nil`, or why some are not there.
  func installPatiently(_ pages: Range<Int>, from source: UInt) -> PinError? {
    var deadline = unsafe Deadline(protection.domain.pointee.patience)
    while true {
      if let failure = protection.failure { return failure }
      let result = shared { domain in install(pages, from: source, in: domain) }
      if result == .done || isOver.load(ordering: .acquiring) { return nil }
      if deadline.isOver() {
        return PinError(
          result == .again ? .timedOut : .outOfMemory, operation: "bring in pages \(pages)", range: addresses,
          advice: "There is no memory for them, or the kernel kept asking to retry; nothing was lost.")
      }
      Kernel.pause(nanoseconds: 200_000)
    }
  }

  // MARK: For who does not fault

  /// Brings `pages` in on the calling thread.
  ///
  /// - Throws: What the store says. Whoever else waits for the pages faults again.
  func bringIn(_ pages: Range<Int>) throws(PinError) {
    var next = pages.lowerBound
    var buffer: Mapping?
    while true {
      next = present.first(in: next..<pages.upperBound, isSet: false)
      if next == pages.upperBound { return }
      if let error = refusals.withLock({ $0[next] }) { throw error }
      if isOver.load(ordering: .acquiring) {
        throw PinError(.unmapped, operation: "bring in page \(next)", range: addresses)
      }
      let window =
        next..<min(pages.upperBound, present.first(in: next..<min(next + FillWindows.maximum, pageCount), isSet: true))
      if buffer == nil { buffer = try Mapping(count: FaultReader.supplySize) }
      let start = buffer?.range.start ?? 0
      // A signal handler of this thread that touches one of them would wait for this thread.
      let isMine = try Kernel.withSignalsBlocked { () throws(PinError) in try bringIn(firstOf: window, through: start) }
      if !isMine { Kernel.pause(nanoseconds: 20_000) }
    }
  }

  /// False if somebody else is at it.
  private func bringIn(firstOf window: Range<Int>, through buffer: UInt) throws(PinError) -> Bool {
    let mine = shared { _ in take(window) }
    if mine.isEmpty { return false }
    defer { giveUp(mine) }
    unsafe try store.read(mine, into: Self.bytes(of: AddressRange(start: buffer, count: FaultReader.supplySize), mine.count))
    if let error = installPatiently(mine, from: buffer) { throw error }
    return true
  }

  /// Marks the first pages of `pages` as `filling` that nobody else brings in.
  private func take(_ pages: Range<Int>) -> Range<Int> {
    var end = pages.lowerBound
    while end < pages.upperBound, tryTake(end) { end += 1 }
    let mine = pages.lowerBound..<end
    filling.insert(mine)
    for page in mine { table.releaseClaim(page) }
    return mine
  }
}
