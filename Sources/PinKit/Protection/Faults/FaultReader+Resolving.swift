internal import Synchronization

extension FaultReader {
  /// A page fault may have been queued before an event that happened earlier: events first.
  func handleEvents(_ domain: borrowing FaultDomain, keepsBefore: UInt64) {
    for index in 0..<batch.count { domain.hear(batch[index], keepsBefore: keepsBefore) }
  }

  func handleBatch(
    _ domain: borrowing FaultDomain, slot: Int, slice: Int, holding hold: borrowing WriteProtectLock.SharedHold,
    begun: UInt64
  ) {
    domain.counters.add(.batches)
    domain.counters.add(.messages, batch.count)
    var faults = 0
    for index in 0..<batch.count {
      guard case .pageFault(let address, let flags, _) = batch[index] else { continue }
      guard domain.addresses.contains(address) else {
        // The number names another region's userfaultfd now, until the watchdog sees it. Let that thread fault again.
        let page = address / UInt(domain.pageSize) * UInt(domain.pageSize)
        Uffd.wake(domain.channels[slice].listening, AddressRange(start: page, count: domain.pageSize))
        continue
      }
      if domain.hasSource, !flags.contains(.writeProtect) {
        supply(domain.page(at: address), domain, slot: slot)
        continue
      }
      let isWrite = flags.contains(.write) || !flags.contains(.minor)
      insertSorted(domain.page(at: address) << 1 | (isWrite ? 1 : 0), count: &faults)
    }
    for index in 0..<faults {
      let page = pages[index] >> 1
      claims = page..<page + 1
      let isWrite = pages[index] & 1 != 0
      var openedAt: UInt64 = 0
      let resolution = FaultPath.resolve(
        page: page, isWrite: isWrite, in: domain, holding: hold, noteClaims: { claims = $0 },
        noteOpen: {
          openedAt = Kernel.now()
          // Another reader serves who comes while this one copies neighbours.
          handler.rearm(domain.channels[slice].listening, slot: slot, slice: slice)
        })
      if !isWrite { domain.counters.add(.minorFaults) }
      settle(resolution, page: page, isWrite: isWrite, domain, slot: slot)
      domain.counters.add(.handlerThreadFaults)
      domain.counters.addLatency((openedAt == 0 ? Kernel.now() : openedAt) - begun)
    }
  }

  /// A page that is not there, or not mapped.
  private func supply(_ page: Int, _ domain: borrowing FaultDomain, slot: Int) {
    claims = page..<page + 1
    let resolution = domain.withSource { $0.supply(page, through: supplies.range, in: domain) { claims = $0 } } ?? .gone
    domain.counters.add(.missingFaults)
    // There is no event to wait for: whoever faulted tries again.
    settle(resolution == .retry ? .gone : resolution, page: page, domain, slot: slot)
  }

  /// Keeps the faults of a batch (page << 1 | is a write) in order and each of them once.
  @inline(__always) private func insertSorted(_ page: Int, count: inout Int) {
    var at = count
    while at > 0, pages[at - 1] > page { at -= 1 }
    if at > 0, pages[at - 1] == page { return }
    var move = count
    while move > at {
      pages[move] = pages[move - 1]
      move -= 1
    }
    pages[at] = page
    count += 1
  }

  func settle(
    _ resolution: FaultResolution, page: Int, isWrite: Bool = true, _ domain: borrowing FaultDomain, slot: Int
  ) {
    switch resolution {
    case .opened, .alreadyOpen, .elsewhere, .failed: return
    case .gone, .denied: FaultPath.wake(page..<page + 1, in: domain)
    case .retry, .held:
      if resolution == .held { domain.counters.add(.heldWrites) }
      let fault = ParkedFaults.Fault(
        slot: slot, region: domain.region, page: page, isWrite: isWrite,
        generation: domain.generation.load(ordering: .relaxed), isHeld: resolution == .held,
        deadline: Deadline(resolution == .held ? .max : domain.patience))
      // With no room the thread is woken: it faults again and queues a new message.
      if !parked.append(fault) { FaultPath.wake(page..<page + 1, in: domain) }
    }
  }
}
