internal import Synchronization

/// Keeping pages of memory that other code may guard, truncate or unmap at any moment (K6): adopted memory.
///
/// Pages are copied first, by means that answer with an error, and looked at afterwards: whether they are zeros is asked of the copy. A page
/// without bytes costs that page: it is on record as one, and reading it from the snapshot is an error.
extension CaptureStore {
  private enum Taking {
    case taken
    /// There are no bytes from this page on.
    case unreadable(Int)
    case noRoom
    case noMemory(CInt)
  }

  private enum Look {
    case zeros
    case bytes
    case unreadable
    case noMemory(CInt)
  }

  /// As the same for other memory; nobody is held, and nothing given up, for the sake of a page without bytes.
  func keepChecked(_ pages: Range<Int>, in domain: borrowing FaultDomain, isAhead: Bool) -> Verdict {
    // Its own copy comes last: until then its place may hold any page that is looked at.
    let scratch = pages.upperBound - 1
    var isScratchUsed = false
    defer { if isScratchUsed { wipe(scratch) } }
    var page = pages.lowerBound
    while page < pages.upperBound {
      let (piece, notZero) = begin(page..<pages.upperBound, domain)
      if piece.isEmpty {
        noteUnreadable(page..<page + 1)
        page += 1
        continue
      }
      while page < piece.upperBound {
        let heads = notZero >> UInt64(page - piece.lowerBound)
        let run = page..<min(piece.upperBound, page + max(1, (~heads).trailingZeroBitCount))
        var taking = Taking.taken
        if heads & 1 == 0 {
          isScratchUsed = true
          switch look(page, in: scratch, domain) {
          case .zeros:
            page += 1
            continue
          case .bytes: break
          case .unreadable: taking = .unreadable(page)
          case .noMemory(let errno): taking = .noMemory(errno)
          }
        }
        if case .taken = taking { taking = take(run, domain) }
        switch taking {
        case .taken: page = run.upperBound
        case .unreadable(let missing):
          noteUnreadable(missing..<missing + 1)
          page = missing + 1
        case .noRoom:
          // What was copied before is worth keeping: the next try needs less room.
          record(pages.lowerBound..<page, in: domain)
          return isAhead ? .held : withoutRoom(for: run.count * pageSize)
        case .noMemory(let errno):
          if isAhead {
            record(pages.lowerBound..<page, in: domain)
            return .held
          }
          lose(.memory, errno: errno)
          return .kept
        }
      }
    }
    record(pages, in: domain)
    return .kept
  }

  /// The first pages of `pages` that can be read, at most 64, and which of them do not begin with zeros. One page alone is looked at when it
  /// has been copied.
  private func begin(_ pages: Range<Int>, _ domain: borrowing FaultDomain) -> (Range<Int>, notZero: UInt64) {
    if pages.count == 1, hasRoom(pageSize) { return (pages, 1) }
    let (readable, notZero) = Memory.heads(domain.addresses(of: pages), pageSize: pageSize)
    return (pages.lowerBound..<pages.lowerBound + readable, notZero)
  }

  /// Copies pages of which the first does not hold zeros only, or is alone.
  private func take(_ pages: Range<Int>, _ domain: borrowing FaultDomain) -> Taking {
    let count = pages.count * pageSize
    guard reserve(count) else { return .noRoom }
    let isDense = isDenseRun(pages)
    let offset = isDense ? denseOffset : 0
    let range = addresses(of: pages)
    let result = Memory.populate(AddressRange(start: range.start + UInt(offset), count: range.count))
    if result < 0 {
      progress.bytes.subtract(count, ordering: .relaxed)
      return .noMemory(-result)
    }
    TestHooks.reach(.capturing, page: pages.lowerBound)
    var done = 0
    var refusal = 0
    while done < count, refusal == 0 {
      let place = unsafe base + offset + pages.lowerBound * pageSize + done
      let copied = unsafe Memory.copyChecked(
        domain.addresses(of: pages).start + UInt(done), to: place, count: count - done)
      if copied > 0 { done += copied } else { refusal = copied }
    }
    if refusal != 0, refusal != Int(Memory.noBytes) {
      progress.bytes.subtract(count, ordering: .relaxed)
      return .noMemory(CInt(-refusal))
    }
    let end = pages.lowerBound + done / pageSize
    progress.bytes.subtract((pages.upperBound - end) * pageSize, ordering: .relaxed)
    let copied = pages.lowerBound..<end
    if copied.count == 1, unsafe Memory.isZero(base + offset + end * pageSize - pageSize, count: pageSize) {
      wipe(pages.lowerBound)
      progress.bytes.subtract(pageSize, ordering: .relaxed)
    } else {
      if isDense { self.isDense.insert(copied) }
      filled.insert(copied)
    }
    return refusal == 0 ? .taken : .unreadable(end)
  }

  /// Whether a page is all zeros, by way of the place for the copy of `scratch`.
  private func look(_ page: Int, in scratch: Int, _ domain: borrowing FaultDomain) -> Look {
    let result = Memory.populate(addresses(of: scratch..<scratch + 1))
    if result < 0 { return .noMemory(-result) }
    let place = unsafe base + scratch * pageSize
    var done = 0
    while done < pageSize {
      let copied = unsafe Memory.copyChecked(
        domain.addresses(of: page..<page + 1).start + UInt(done), to: place + done, count: pageSize - done)
      if copied == Int(Memory.noBytes) { return .unreadable }
      if copied <= 0 { return .noMemory(CInt(-copied)) }
      done += copied
    }
    return unsafe Memory.isZero(place, count: pageSize) ? .zeros : .bytes
  }

  /// Gives the place of a copy back that is not one.
  private func wipe(_ page: Int) {
    if filled.contains(page), !isDense.contains(page) { return }
    _ = Memory.adviseResult(addresses(of: page..<page + 1), .dontNeed)
  }

  // MARK: Pages without bytes

  func noteUnreadable(_ pages: Range<Int>) {
    unreadable.insert(pages)
    hasUnreadable.store(true, ordering: .releasing)
  }

  @inline(__always) func isUnreadable(_ page: Int) -> Bool {
    hasUnreadable.load(ordering: .acquiring) && unreadable.contains(page)
  }

  /// Whether this store says what a page was, or that it was nothing.
  @inline(__always) func answers(for page: Int) -> Bool { captured.contains(page) || isUnreadable(page) }
}
