internal import Synchronization

extension RegionProtection {
  /// - Parameter isAlone: The wrprotect lock is held exclusively.
  func lift(_ domain: borrowing FaultDomain, isAlone: Bool = true) {
    // Where pages come from a store, those that are not there would read as zeros from now on, to whoever still has a pointer.
    // Sealed bytes would be read as if they were plain.
    if domain.hasSource || domain.withSeals({ $0.mayHaveSealedBytes }) == true {
      Memory.makeInaccessible(addresses)
    } else if domain.sharing.load(ordering: .acquiring) != 0 {
      // Frames that others have may not be written any more, whoever tries.
      closeToWriters(domain)
    }
    // Unprotected first: a signal handler that saw nothing to resolve while its page is still protected would give up on it.
    switch domain.delivery.load(ordering: .sequentiallyConsistent) {
    case .none: break
    case .mprotect: liftMprotect(domain)
    case .handlerThread, .inPlace, .asynchronous: unregister(domain)
    }
    domain.delivery.store(.none, ordering: .sequentiallyConsistent)
    domain.forgetCuts()
    // Who opens pages by mprotect knows by this mark which of them it has not claimed.
    guard isAlone else { return }
    let table = domain.table
    table.open.drain { pages in for page in pages { table.remove(.openAround, at: page) } }
  }

  /// Lets nobody write pages whose frames others may have: the region is being unmapped, or has failed.
  private func closeToWriters(_ domain: borrowing FaultDomain) {
    let table = domain.table
    var start = 0
    while start < table.pageCount {
      let isHidden = table.hasDeniedPages && table[start].contains(.readDenied)
      var end = table.hasDeniedPages ? start + 1 : table.pageCount
      while end < table.pageCount, table[end].contains(.readDenied) == isHidden { end += 1 }
      if Memory.protect(domain.addresses(of: start..<end), isHidden ? [] : .read) != 0 {
        return Memory.makeInaccessible(addresses)
      }
      start = end
    }
  }

  private func unregister(_ domain: borrowing FaultDomain) {
    defer { if !domain.hasSeals { domain.hasMinorFaults.store(false, ordering: .sequentiallyConsistent) } }
    for slice in 0..<domain.sliceCount {
      let slicePages = domain.addresses(ofSlice: slice)
      // With its last number the userfaultfd went, and let everybody go who waited for it.
      guard let descriptor = domain.channels[slice].anyDescriptor else { continue }
      // Removes protection from the entries; memory unmapped behind our back is skipped piece by piece.
      if Uffd.unregister(descriptor, slicePages) != .done {
        for mapping in (try? ProcessMaps.mappings(in: slicePages)) ?? [] {
          _ = Uffd.unregister(descriptor, mapping.range.clamped(to: slicePages))
        }
      }
      // Of its own accord the kernel wakes those only who wait for missing pages.
      Uffd.wake(descriptor, slicePages)
    }
  }

  /// Everything becomes writable but what the user protected.
  private func liftMprotect(_ domain: borrowing FaultDomain) {
    if domain.sharing.load(ordering: .acquiring) != 0 { return }
    var start = 0
    let table = domain.table
    guard table.hasDeniedPages else {
      _ = Memory.protect(addresses, .readWrite)
      return
    }
    for page in 0...table.pageCount {
      let stops = page == table.pageCount || !table[page].isDisjoint(with: .denied)
      if stops, start < page { _ = Memory.protect(domain.addresses(of: start..<page), .readWrite) }
      if stops { start = page + 1 }
    }
  }

  /// Lets everyone go on without protection; the failure stays on record.
  func releaseAfterFailure() {
    // Not beside the end of the region: what is mapped over must still be its memory.
    ending.withLock { _ in if slotIndex != nil { liftFailed() } }
  }

  /// In nanoseconds.
  private static let patienceAfterFailure: UInt64 = 250_000_000

  /// Whoever is at a page is waited for, so that nobody gives rights back afterwards; but a thread that ended in the middle of a fault may
  /// have taken the lock with it.
  func liftFailed() {
    var deadline = Deadline(Self.patienceAfterFailure)
    while tryExclusive({ lift($0) }) == nil {
      if deadline.isOver() { return unsafe lift(domain.pointee, isAlone: false) }
      Kernel.pause(nanoseconds: 500_000)
    }
  }
}
