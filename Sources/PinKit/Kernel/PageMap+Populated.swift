internal import CUffd
internal import SystemPackage

/// Which pages have bytes (K4).
///
/// A page that is not present is not empty: it may be in a swap device, or on its way from one frame to another at this moment (compaction,
/// NUMA balancing, memory that is taken offline). Those are `PAGE_IS_SWAPPED`, and so are the marks of write-protected pages that nobody
/// has touched, so each such entry is looked at.
extension PageMap {
  /// Calls `body` with the runs of `range` that match and have bytes, in order. Where it cannot be told, they count as having some.
  ///
  /// - Parameters:
  ///   - query: What is asked for beside that; its `anyOf` and `returned` are not used.
  ///   - isPrivateAnonymous: Of other memory a page can be in its file and have no entry: pages with a mark count then.
  func scanPopulated(
    _ range: AddressRange, _ query: Query = Query(), isPrivateAnonymous: Bool, _ body: (AddressRange) -> Void
  ) throws(PinError) {
    var query = query
    query.anyOf = [.present, .swapped]
    query.returned = .swapped
    var away: [AddressRange] = []
    var last: AddressRange?
    var failure: PinError?
    func found(_ run: AddressRange) {
      if let before = last, before.end == run.start {
        last = AddressRange(start: before.start, end: run.end)
      } else {
        if let before = last { body(before) }
        last = run
      }
    }
    try scan(range, query) { run, categories in
      if !categories.contains(.swapped) || !isPrivateAnonymous { return found(run) }
      if failure != nil { return }
      do throws(PinError) { try resolve(run, into: &away) } catch { failure = error }
      for part in away { found(part) }
      away.removeAll(keepingCapacity: true)
    }
    if let failure { throw failure }
    if let last { body(last) }
  }

  /// The parts of `run`, which was not present when it was looked at, that have bytes now.
  private func resolve(_ run: AddressRange, into away: inout [AddressRange]) throws(PinError) {
    var entries: [UInt64] = []
    var at = run.start
    while at < run.end {
      let part = AddressRange(start: at, count: min(Self.entriesAtOnce * Memory.pageSize, Int(run.end - at)))
      let count = part.count / Memory.pageSize
      if entries.count != count { entries = [UInt64](repeating: 0, count: count) }
      guard try read(at, into: &entries) == count else { throw .kernel(-Int(Errno.ioError.rawValue), "read pagemap", part) }
      var resident: [Bool]?
      var isAsked = false
      for index in 0..<count {
        switch PagemapEntry.residence(entries[index]) {
        case .nowhere: continue
        case .inMemory, .away: break
        case .hidden:
          if !isAsked { resident = MemoryResidence.find(part) }
          isAsked = true
          if resident?[index] == false { continue }
        }
        let page = AddressRange(start: at + UInt(index * Memory.pageSize), count: Memory.pageSize)
        if let last = away.last, last.end == page.start {
          away[away.count - 1] = AddressRange(start: last.start, end: page.end)
        } else {
          away.append(page)
        }
      }
      at = part.end
    }
  }

  private static let entriesAtOnce = 4096
}

/// mincore(2) of private anonymous memory, for who may not see swap entries: a page under migration is in core, a mark is not. So is a page
/// that is in a swap device, though; where the machine has one, nothing is known.
enum MemoryResidence {
  static func find(_ range: AddressRange, hasSwap: () -> Bool = { hasSwap }) -> [Bool]? {
    if hasSwap() { return nil }
    var pages = [UInt8](repeating: 0, count: range.count / Memory.pageSize)
    let result = unsafe pages.withUnsafeMutableBufferPointer {
      unsafe cuffd_mincore(UInt64(range.start), UInt64(range.count), $0.baseAddress!)
    }
    // A device that came since may have taken a page before it was looked at.
    return result < 0 || hasSwap() ? nil : pages.map { $0 & 1 != 0 }
  }

  /// Whether there is any swap device, also one that is being emptied.
  static var hasSwap: Bool {
    do throws(PinError) {
      // A line of headings, then one for each device.
      return try ProcessMaps.readFile("/proc/swaps").split(separator: "\n").count > 1
    } catch {
      return true
    }
  }
}
