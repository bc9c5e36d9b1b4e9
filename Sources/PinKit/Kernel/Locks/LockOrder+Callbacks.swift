extension LockOrder {
  /// The callbacks in which code of a subscriber runs.
  enum CallbackKind: Sendable, Hashable {
    case invalidateRangeStart, invalidateRange, invalidateRangeEnd
    /// A tracker's, inside the fault path.
    case firstWrite

    /// The innermost lock that whoever calls it may hold.
    fileprivate var rank: LockRank { self == .invalidateRange ? .pageTable : .page }
    fileprivate var name: StaticString {
      switch self {
      case .invalidateRangeStart: "invalidateRangeStart callback"
      case .invalidateRange: "invalidateRange callback"
      case .invalidateRangeEnd: "invalidateRangeEnd callback"
      case .firstWrite: "first-write callback"
      }
    }
  }

  /// Whether the calling thread is inside a callback of a subscriber: counted whether or not the order is checked, as faults and calls that
  /// would wait for the callback are refused there.
  @inline(__always) static var isInCallback: Bool { LockRecord.callbackDepth > 0 }

  /// To be called right before a callback, with ``leaveCallback()`` after it, on the same thread. They nest. `place` is what a report
  /// shows for the callback: where it was registered, or where it is called.
  static func enterCallback(_ kind: CallbackKind, at place: LockPlace) {
    LockRecord.enterCallback(isAtomic: kind.rank.isAtomic)
    guard isOn else { return }
    LockRecord.push(
      kind.rank, kind.name, key: callbackKey, place: place,
      flags: LockRecord.callback | (kind == .firstWrite ? LockRecord.firstWrite : 0))
  }

  static func leaveCallback() {
    if isOn { LockRecord.pop(key: callbackKey) }
    LockRecord.leaveCallback()
  }

  /// No address of a lock.
  private static var callbackKey: UInt { UInt.max - UInt(LockRecord.callbackDepth) }

  // MARK: Calls

  /// To be called where a call of PinKit may block: reports it in atomic context, and where it would wait for the callback that it is made
  /// from. A first-write callback is told by the error alone.
  @inline(__always) static func mayBlock(
    _ operation: StaticString, file: StaticString = #fileID, line: UInt = #line
  ) {
    if isOn { noteCall(operation, LockPlace(file: file, line: line)) }
  }

  @inline(never) private static func noteCall(_ operation: StaticString, _ place: LockPlace) {
    var found: (kind: Report.Kind, held: LockRecord.Held)?
    LockRecord.forEach { lock in
      if lock.rank?.isAtomic == true {
        found = (.blockingInAtomicContext, lock)
      } else if lock.isCallback, !lock.isFirstWrite, found == nil {
        found = (.callInCallback, lock)
      }
    }
    guard let found else { return deliverIfIdle() }
    LockRecord.note(found.kind.rawValue, found.held, operation, place)
  }

  /// Refuses, inside a callback, what would wait for that callback: a fault that is asked for, a translation, a call that changes
  /// protection. Reports it too.
  ///
  /// - Throws: ``PinError`` `.wouldDeadlock`.
  static func refuseInCallback(
    _ operation: StaticString, _ range: AddressRange? = nil, file: StaticString = #fileID, line: UInt = #line
  ) throws(PinError) {
    mayBlock(operation, file: file, line: line)
    guard Kernel.isInFaultPath || isInCallback else { return }
    throw PinError(
      .wouldDeadlock, operation: "\(operation)", range: range,
      advice: "The call was made from a callback that it would wait for; hand it to another thread.")
  }

  // MARK: Waiting

  /// Marks the mutexes that the thread holds: their owner waits, for `what`. Until ``didWait()`` a report of whoever wants one says so.
  @inline(never) static func willWait(for what: StaticString, place: LockPlace) {
    guard isOn else { return }
    LockRecord.forEach { lock in
      if let owner = unsafe lock.owner { unsafe owner.pointee.beginWaiting(what, place) }
    }
  }

  @inline(never) static func didWait() {
    guard isOn else { return }
    LockRecord.forEach { lock in
      if let owner = unsafe lock.owner { unsafe owner.pointee.endWaiting() }
    }
  }
}
