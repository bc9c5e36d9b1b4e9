internal import Synchronization

/// Bringing pages in.
extension FilePages {
  /// Brings a page in that somebody touches, and its neighbours as far as they are nobody's business at this moment.
  func bring(_ page: Int, through buffer: AddressRange, in domain: borrowing FaultDomain) -> FaultResolution {
    _ = table.claim(page)
    defer { table.releaseClaim(page) }
    if filling.contains(page) { return .elsewhere }
    if refused.contains(page) { return .gone }
    let window = windows.window(at: page)
    var first = page
    while first > window.pages.lowerBound, tryTake(first - 1) { first -= 1 }
    var end = page + 1
    while end < min(window.pages.upperBound, pageCount), tryTake(end) { end += 1 }
    let pages = first..<end
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

  /// Maps the bytes at `source` as `pages`, write-protected, and wakes who waits. Pages that are there keep their bytes.
  func install(_ pages: Range<Int>, from source: UInt, in domain: borrowing FaultDomain) -> Installation {
    let descriptor = domain.descriptor.load(ordering: .acquiring)
    let all = domain.addresses(of: pages)
    var done = 0
    var step = all.count
    while done < all.count {
      let rest = AddressRange(start: all.start + UInt(done), count: min(step, all.count - done))
      let (result, bytes) = Uffd.copy(descriptor, source + UInt(done), to: rest)
      switch result {
      case .done:
        let start = pages.lowerBound + done / Memory.pageSize
        present.insert(start..<start + bytes / Memory.pageSize)
        counters.add(.suppliedPages, bytes / Memory.pageSize)
        done += bytes
      case .again:
        counters.add(.retries)
        return .again
      case .refused(UffdResult.badDescriptor) where domain.useSpareDescriptor(insteadOf: descriptor): return .again
      case .gone where step > Memory.pageSize:
        // The kernel fills one mapping at a time, and pages that went to other frames have mappings of their own.
        step = Memory.pageSize
      case .gone where domain.delivery.load(ordering: .acquiring) != .none:
        domain.fail(.mappingChanged, errno: result.errno)
        return .refused
      case .gone, .refused: return .refused
      }
    }
    return .done
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
