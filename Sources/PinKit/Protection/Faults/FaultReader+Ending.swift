internal import Synchronization

extension FaultReader {
  /// Runs on the thread as it ends, however it does. In the middle of a fault it held the wrprotect lock and the claims of a page, and
  /// its own stack is gone: the region is failed first, then everything is let go, so that whoever waits for it finds the
  /// failure. What it had only taken note of goes back to the other readers.
  func abandon() {
    let busy = busySlot.load(ordering: .relaxed) - 1
    if busy >= 0 {
      let slot = unsafe handler.slot(busy)
      if let domain = unsafe slot.pointee.enter() {
        unsafe abandon(domain.pointee)
        unsafe slot.pointee.leave()
      }
      unsafe slot.pointee.leave()
    }
    for index in unvisited where ready[index] < UInt64(FaultHandler.capacity) { giveBack(Int(ready[index])) }
    while !parked.isEmpty {
      let fault = parked.removeFirst()
      giveBack(fault.slot, page: fault.page, of: fault.region)
    }
  }

  private func abandon(_ domain: borrowing FaultDomain) {
    domain.fail(.readerDied, errno: 0)
    guard isHolding else { return }
    for page in claims where domain.table[page].contains(.claimed) { domain.table.releaseClaim(page) }
    domain.lock.abandonShared()
  }

  private func giveBack(_ index: Int, page: Int = 0, of region: UInt64? = nil) {
    let slot = unsafe handler.slot(index)
    guard let domain = unsafe slot.pointee.enter() else { return }
    if unsafe domain.pointee.region == region { unsafe FaultPath.wake(page..<page + 1, in: domain.pointee) }
    let descriptor = unsafe domain.pointee.listening
    if unsafe domain.pointee.isOwn(descriptor) { handler.rearm(descriptor, slot: index) }
    unsafe slot.pointee.leave()
  }
}
