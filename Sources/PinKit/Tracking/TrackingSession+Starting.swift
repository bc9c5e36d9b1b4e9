internal import Logging
internal import Synchronization

extension TrackingSession {
  /// The session's mechanism, started or resumed if need be.
  func running(
    _ state: inout State, _ wanted: WriteTracking.Mechanism, _ options: WriteTracking.Options, needsFaults: Bool,
    of region: Region, _ moment: ArmingMoment = .notNeeded, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> any TrackingMechanism {
    if let mechanism = state.mechanism {
      if state.isSuspended { try resume(&state) }
      return mechanism
    }
    if let loss = state.loss { throw loss }
    protection.setFaultAround(options.faultAround)
    let mechanism = try start(wanted, needsFaults: needsFaults, of: region, moment, armed: armed)
    state.mechanism = mechanism
    return mechanism
  }

  func requireCompatible(
    _ active: WriteTracking.Mechanism, _ wanted: WriteTracking.Mechanism, needsFaults: Bool,
    _ options: WriteTracking.Options, _ state: State
  ) throws(PinError) {
    guard wanted == .automatic || wanted == active else {
      throw PinError(
        .inUse, operation: "trackWrites(.\(wanted))", range: addresses,
        advice:
          "The region is tracked by .\(active) already, and has one mechanism at a time: ask for .automatic or .\(active), or stop the other trackers first."
      )
    }
    if needsFaults, active == .asynchronous {
      throw PinError(
        .inUse, operation: "trackWrites", range: addresses,
        advice:
          "First-write callbacks and fault-around need a synchronous mechanism, and the region is tracked by .asynchronous: stop its trackers first, or give the first of them a callback."
      )
    }
    try requireFaultAround(options.faultAround, state)
  }

  /// Exact sets are had beside everybody; fault-around only beside trackers that want the same.
  private func requireFaultAround(_ wanted: FaultAroundPolicy, _ state: State) throws(PinError) {
    if wanted == .exact { return }
    let operation = "trackWrites with fault-around \(wanted)"
    if backing.stored != nil {
      throw PinError(
        .unsupported, operation: operation, range: addresses,
        advice:
          "The region lies over a store, which hears of each page before it is written: faults open one page. Ask for .exact."
      )
    }
    guard let other = state.trackers.values.lazy.compactMap(\.faultAround).first(where: { $0 != wanted }) else { return }
    throw PinError(
      .inUse, operation: operation, range: addresses,
      advice: "Another tracker of the region asked for fault-around \(other), and they share one protection: stop it first.")
  }

  /// Starts what was asked for, or for `.automatic` the first candidate that works here.
  func start(
    _ wanted: WriteTracking.Mechanism, needsFaults: Bool, of region: Region, _ moment: ArmingMoment,
    armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> any TrackingMechanism {
    guard wanted == .automatic else {
      try requireSupport(wanted, needsFaults: needsFaults)
      return try start(wanted, of: region, moment, armed: armed)
    }
    var refusals: [PinError] = []
    for (candidate, reason) in WriteTracking.Mechanism.candidates(
      needsFaults: needsFaults, support: backing.support)
    {
      do throws(PinError) {
        let mechanism = try start(candidate, of: region, moment, armed: armed)
        if candidate == .mprotect, let refusal = refusals.first(where: { $0.code == .permissionDenied }) {
          Degradation.warnOnce(logger, refusal)
        } else if candidate == .mprotect, let refusal = refusals.first(where: { $0.code == .limitReached }) {
          logger.warning("tracking \(addresses) by mprotect: \(refusal)")
        }
        logger.info("tracking \(addresses) by .\(candidate): \(reason)")
        return mechanism
      } catch {
        // Another mechanism would not change a subscriber's mind.
        if error.code == .subscriberFailed || error.code == .timedOut { throw error }
        refusals.append(error)
      }
    }
    throw refusals.last
      ?? PinError(.unsupported, operation: "trackWrites", advice: "No mechanism can track \(backing).")
  }

  private func requireSupport(_ wanted: WriteTracking.Mechanism, needsFaults: Bool) throws(PinError) {
    guard backing.support.isSuperset(of: wanted.requirement) else {
      throw PinError(
        .unsupported, operation: "trackWrites(.\(wanted))", range: addresses,
        advice:
          "The backing is \(backing); synchronous userfaultfd tracking needs anonymous, pool or hugetlb memory. Use .asynchronous or .mprotect here."
      )
    }
    if needsFaults, wanted == .asynchronous {
      throw PinError(
        .unsupported, operation: "trackWrites(.asynchronous)", range: addresses,
        advice:
          "The kernel resolves these faults by itself: first-write callbacks and fault-around need .handlerThread, .inPlace or .mprotect."
      )
    }
  }

  func start(
    _ kind: WriteTracking.Mechanism, of region: Region, _ moment: ArmingMoment, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> any TrackingMechanism {
    let mechanism: any TrackingMechanism =
      kind == .asynchronous
      ? try AsynchronousMechanism(region: region, protection: protection)
      : SynchronousMechanism(
        kind: kind, protection: protection, pageCount: pageCount, unmapped: isUntouched ? region.frames : nil)
    // What was written through pins before is nobody's.
    _ = writtenThroughPins()
    try layout.withLock { () throws(PinError) in try mechanism.start(moment, armed: armed) }
    return mechanism
  }
}

/// The one warning of a process that has to make do without userfaultfd.
enum Degradation {
  private static let hasWarned = Atomic<Bool>(false)

  static func warnOnce(_ logger: Logger, _ error: PinError) {
    guard !hasWarned.exchange(true, ordering: .relaxed) else { return }
    logger.warning("userfaultfd cannot be used, tracking falls back to mprotect: \(error)")
  }
}
