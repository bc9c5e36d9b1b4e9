internal import Logging
internal import Synchronization

/// Other code closes descriptors that are not its own, typically in a loop over all numbers before it executes another program. PinKit's
/// are as high as the limit on open files allows, and each is known by more than its number (K5). The userfaultfds are their regions'
/// (``RegionProtection/repairDescriptors()``).
extension FaultHandler {
  /// Looks at what the readers and the pool live on, and repairs what can be repaired. For the watchdog.
  func repairDescriptors() {
    let end = stop.repair()
    let set = events.repair()
    if end == .lost, stop.replace() { try? events.add(stop.descriptor, data: Self.stopData, once: false) }
    if set == .lost, events.replace() {
      // Readers that wait with the old one come here after their timeout.
      try? events.add(stop.descriptor, data: Self.stopData, once: false)
      for protection in protections { protection.listenAgain() }
    }
    report(end, "the eventfd that ends the fault readers", lost: "there is a new one")
    report(set, "the epoll set of the fault readers", lost: "there is a new one")
    if let pool {
      report(
        pool.repairDescriptor(), "the file of the frame pool",
        lost:
          "its frames stay as they are, no region can be mapped or cloned, and one whose frames others have fails at its next write"
      )
    }
  }

  private func report(_ outcome: MarkedDescriptor.Outcome, _ what: String, lost: String) {
    switch outcome {
    case .whole: return
    case .repaired:
      logger.error("\(what) was closed by other code in this process; its spare took over. \(PinError.closedAdvice)")
    case .lost:
      logger.critical("\(what) was closed by other code in this process, and its spare: \(lost). \(PinError.closedAdvice)")
    }
  }
}
