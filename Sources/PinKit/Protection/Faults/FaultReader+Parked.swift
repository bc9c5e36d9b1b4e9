internal import Synchronization

extension FaultReader {
  /// Tries again what the kernel could not do while an event was in flight.
  func retryParked() {
    let count = parked.count
    for _ in 0..<count {
      var fault = parked.removeFirst()
      let slot = unsafe handler.slot(fault.slot)
      guard let domain = unsafe slot.pointee.enter() else { continue }
      busySlot.store(fault.slot + 1, ordering: .relaxed)
      unsafe retry(&fault, domain.pointee)
      busySlot.store(0, ordering: .relaxed)
      unsafe slot.pointee.leave()
    }
  }

  private func retry(_ fault: inout ParkedFaults.Fault, _ domain: borrowing FaultDomain) {
    // The slot may have gone to another region, which need not even have that page; ending the old one woke the thread.
    guard domain.region == fault.region else { return }
    guard let hold = domain.lock.trySharedOrDefer() else {
      _ = parked.append(fault)
      return
    }
    isHolding = true
    defer { isHolding = false }
    claims = fault.page..<fault.page + 1
    if domain.generation.load(ordering: .relaxed) != fault.generation {
      // An exclusive operation ran meanwhile: let the thread fault anew rather than resolve a fault it may have got over.
      FaultPath.wake(fault.page..<fault.page + 1, in: domain)
      return
    }
    if fault.deadline.isOver() {
      domain.failLate()
      return
    }
    let resolution = FaultPath.resolve(
      page: fault.page, isWrite: fault.isWrite, in: domain, holding: hold, noteClaims: { claims = $0 })
    if resolution == .retry || resolution == .held {
      // A snapshot may hold a writer for as long as it likes; what has to be tried again afterwards is another wait.
      if fault.isHeld != (resolution == .held) {
        fault.isHeld.toggle()
        fault.deadline = Deadline(fault.isHeld ? .max : domain.patience)
      }
      _ = parked.append(fault)
    } else {
      settle(resolution, page: fault.page, isWrite: fault.isWrite, domain, slot: fault.slot)
    }
  }
}

/// Faults that wait for an event to pass, in a ring of fixed size.
struct ParkedFaults {
  struct Fault {
    var slot: Int
    var region: UInt64
    var page: Int
    var isWrite: Bool
    var generation: UInt64
    var isHeld: Bool
    var deadline: Deadline
  }
  private var ring = InlineArray<256, Fault>(
    repeating: Fault(slot: 0, region: 0, page: 0, isWrite: true, generation: 0, isHeld: false, deadline: Deadline(.max)))
  private var first = 0
  private(set) var count = 0

  var isEmpty: Bool { count == 0 }

  /// False if there is no room.
  mutating func append(_ fault: Fault) -> Bool {
    guard count < 256 else { return false }
    ring[(first + count) & 255] = fault
    count += 1
    return true
  }

  mutating func removeFirst() -> Fault {
    let fault = ring[first]
    first = (first + 1) & 255
    count -= 1
    return fault
  }
}
