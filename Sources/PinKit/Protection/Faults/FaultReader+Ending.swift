internal import Synchronization

extension FaultReader {
  /// Runs on the thread as it ends, however it does. In the middle of a fault it held the wrprotect lock and the claims of a page, and
  /// its own stack is gone: the region is failed first, then everything is let go, so that whoever waits for it finds the
  /// failure. What it had only taken note of goes back to the other readers.
  func abandon() {
    if isWaiting { _ = handler.crew.endWaiting(hasWork: false) }
    if isServing { handler.crew.endServing() }
    let busy = busySlot.load(ordering: .relaxed) - 1
    if busy >= 0 {
      let slot = unsafe handler.slot(busy)
      if let domain = unsafe slot.pointee.enter() {
        unsafe abandon(domain.pointee)
        unsafe slot.pointee.leave()
      }
      unsafe slot.pointee.leave()
    }
    while !parked.isEmpty { giveBack(parked.removeFirst()) }
  }

  private func abandon(_ domain: borrowing FaultDomain) {
    domain.fail(.readerDied, errno: 0)
    guard isHolding else { return }
    for page in claims where domain.table[page].contains(.claimed) { domain.table.releaseClaim(page) }
    domain.lock.abandonShared()
  }

  /// Whoever faulted tries again, and queues a new message.
  private func giveBack(_ fault: ParkedFaults.Fault) {
    let slot = unsafe handler.slot(fault.slot)
    guard let domain = unsafe slot.pointee.enter() else { return }
    if unsafe domain.pointee.region == fault.region {
      unsafe FaultPath.wake(fault.page..<fault.page + 1, in: domain.pointee)
    }
    unsafe slot.pointee.leave()
  }
}
