internal import Synchronization

/// Pages that are pinned for writing stay open, as long as the region's own mapping is what protects them.
///
/// Who has a page pinned for writing hands its address to a driver, which pins it under a lock of its own and cannot wait for a fault (P8),
/// or to a system call (P9). The page is in every set while the pin lives (P6), so that protecting it would tell nobody anything. Whoever
/// needs the moment when nobody can write, a snapshot or a clone, protects it all the same and copies it; it is opened again
/// before the exclusive lock is let go of.
///
/// Under that lock, all of it: a pin is counted before, or gives way.
enum OpenPins {
  /// Of `opened`, which were on record as open, the pages that stay so.
  static func staying(of opened: DirtySet, in domain: borrowing FaultDomain) -> DirtySet {
    if opened.isEmpty { return opened }
    let pinned = pages(in: domain, of: opened.runs[0].lowerBound..<opened.runs[opened.runs.count - 1].upperBound)
    return pinned.isEmpty ? pinned : opened.subtracting(opened.subtracting(pinned))
  }

  /// From here on drivers and system calls may find pinned pages protected.
  static func willClose(in domain: borrowing FaultDomain) {
    if domain.table.pinned.isEmpty { return }
    let isOpen = domain.pinClosings.load(ordering: .relaxed) & 1 == 0
    if isOpen { domain.pinClosings.add(1, ordering: .sequentiallyConsistent) }
  }

  /// Opens every page that is pinned and protected, and puts it on record. What cannot be opened now faults, or is opened by its pin's owner.
  static func reopen(in domain: borrowing FaultDomain) {
    for run in pages(in: domain, of: 0..<domain.table.pageCount).runs {
      for page in run where !domain.table[page].contains(.open) { reopen(page, in: domain) }
    }
    let isClosed = domain.pinClosings.load(ordering: .relaxed) & 1 == 1
    if isClosed { domain.pinClosings.add(1, ordering: .sequentiallyConsistent) }
  }

  private static func reopen(_ page: Int, in domain: borrowing FaultDomain) {
    let alone = page..<page + 1
    // A pin that is about to give way counts, too: nobody has copied its page.
    if domain.withOwedBytes({ $0.keepAhead(alone, in: domain) }) == .held { return }
    let decision = domain.withSharing { $0.decide(page, among: alone).decision } ?? .reuse
    guard decision == .reuse, unprotect(alone, in: domain) else { return }
    domain.table.insert(.open, at: page)
    domain.table.open.insert(alone)
  }

  private static func unprotect(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> Bool {
    let range = domain.addresses(of: pages)
    switch domain.delivery.load(ordering: .acquiring) {
    case .none, .asynchronous: return false
    case .mprotect: return Memory.protect(range, .readWrite) == 0
    case .handlerThread, .inPlace:
      return domain.unprotect(range, wake: true) == .done
    }
  }

  /// The pages among `pages` that are pinned for writing and whose protection is the tracker's alone. Pages of a store and sealed ones are opened by
  /// others, too, and huge frames are protected by not being mapped: what is pinned there is reached through the pool's own mapping.
  static func pages(in domain: borrowing FaultDomain, of pages: Range<Int>) -> DirtySet {
    let table = domain.table
    var found = DirtySet(pageCount: table.pageCount)
    guard !table.pinned.isEmpty, !domain.hasSource, !domain.hasSeals, !domain.hasMinorFaults.load(ordering: .relaxed)
    else { return found }
    table.forEachPinned(in: pages) { page, entry in
      if entry.pinsForWriting > 0, entry.isDisjoint(with: .denied) { found.append(page..<page + 1) }
    }
    return found
  }
}
