internal import Synchronization

extension RegionProtection {
  func lift(_ domain: borrowing FaultDomain) {
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
    let table = domain.table
    table.open.drain { pages in for page in pages { table.remove(.openAround, at: page) } }
  }

  /// Lets nobody write pages whose frames others may have: the region is being unmapped, or has failed.
  private func closeToWriters(_ domain: borrowing FaultDomain) {
    if Memory.protect(addresses, .read) != 0 { Memory.makeInaccessible(addresses) }
  }

  private func unregister(_ domain: borrowing FaultDomain) {
    defer { if !domain.hasSeals { domain.hasMinorFaults.store(false, ordering: .sequentiallyConsistent) } }
    var descriptor = domain.descriptor.load(ordering: .acquiring)
    if !domain.isOwn(descriptor) { descriptor = domain.spareDescriptor.load(ordering: .acquiring) }
    // With its last number the userfaultfd went, and let everybody go who waited for it.
    guard domain.isOwn(descriptor) else { return }
    // Removes protection from the entries; memory unmapped behind our back is skipped piece by piece.
    if Uffd.unregister(descriptor, addresses) != .done {
      for mapping in (try? ProcessMaps.mappings(in: addresses)) ?? [] {
        _ = Uffd.unregister(descriptor, mapping.range.clamped(to: addresses))
      }
    }
    // Of its own accord the kernel wakes those only who wait for missing pages.
    Uffd.wake(descriptor, addresses)
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
    ending.withLock { _ in if slotIndex != nil { unsafe lift(domain.pointee) } }
  }
}
