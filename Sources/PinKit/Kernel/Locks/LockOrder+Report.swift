internal import CUffd

extension LockOrder {
  /// A violation of the lock order.
  public struct Report: Sendable, Hashable, CustomStringConvertible {
    /// What was violated.
    public enum Kind: Int32, Sendable, Hashable {
      /// A lock was waited for under one that comes after it.
      case againstOrder = 1
      /// Something that may block, in a context where nothing may.
      case blockingInAtomicContext
      /// A callback waited for a subscriber's mutex, whose owner may be waiting for what the caller of the callback holds.
      case mutexInCallback
      /// A callback made a call that waits for the callback.
      case callInCallback
    }

    /// A line of source.
    public struct Place: Sendable, Hashable, CustomStringConvertible {
      /// As `#fileID` has it: module and file.
      public let file: String
      /// Counted from 1.
      public let line: Int
      public var description: String { "\(file):\(line)" }
    }

    /// What a thread did at a place.
    public struct Site: Sendable, Hashable, CustomStringConvertible {
      /// The lock's name, or that of the callback or of the call.
      public let name: String
      /// `nil` for a call.
      public let rank: LockRank?
      public let place: Place
      /// The kernel's number of the thread.
      public let threadID: Int
      /// Empty if the thread has ended since.
      public let threadName: String
      public var description: String {
        "\(place): \(name)\(rank.map { " (rank \($0.rawValue), \($0))" } ?? "") by thread \(threadID) (\(threadName))"
      }
    }

    public let kind: Kind
    /// What the thread held, or the callback that it was in.
    public let held: Site
    /// What it waited for then, or the call that it made.
    public let wanted: Site
    /// Who had the mutex at that moment, and where it took it, if anybody did.
    public let owner: Site?
    /// What that owner was waiting for in PinKit at that moment, if it was. Of a fault that a handler thread serves, only the kernel knows
    /// that the owner waits.
    public let ownerWaitsFor: Site?

    /// A sentence that says what to do.
    public var advice: String {
      switch kind {
      case .againstOrder where wanted.rank == held.rank:
        "Hold one \(wanted.rank?.description ?? "lock") at a time, or try the second and do not wait."
      case .againstOrder:
        "Take \(wanted.name) before \(held.name), or try it and do not wait."
      case .blockingInAtomicContext:
        "Nothing may block under \(held.name): hand the work to another thread, or use an OrderedSpinLock."
      case .mutexInCallback:
        "A callback must not wait for \(wanted.name): use withLockIfAvailable, and return .wouldBlock where it gives nil."
      case .callInCallback:
        "\(wanted.name) waits for the callback that it is called from: hand it to another thread."
      }
    }

    /// A line for each place, and one for the advice.
    public var lines: [String] {
      let title =
        switch kind {
        case .againstOrder: "acquisition against the lock order"
        case .blockingInAtomicContext: "blocking in atomic context"
        case .mutexInCallback: "a callback waits for a subscriber's mutex"
        case .callInCallback: "a callback makes a call that waits for it"
        }
      var lines = ["\(title): \(wanted)", "while holding: \(held)"]
      if let owner { lines.append("whose owner took it at: \(owner)") }
      if let ownerWaitsFor { lines.append("and waits for: \(ownerWaitsFor)") }
      return lines + [advice]
    }

    public var description: String { lines.joined(separator: "\n") }
  }
}

extension LockOrder.Report {
  init(_ raw: LockRecord.Violation) {
    kind = Kind(rawValue: unsafe raw.kind) ?? .againstOrder
    let name = unsafe withUnsafeBytes(of: raw.thread_name) { unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    unsafe held = Site(raw.held, threadName: name)
    unsafe wanted = Site(raw.wanted, threadName: name)
    owner = unsafe raw.owner.thread == 0 ? nil : Site(raw.owner)
    ownerWaitsFor = unsafe raw.waiting.place == 0 ? nil : Site(raw.waiting)
  }
}

extension LockOrder.Report.Site {
  fileprivate init(_ raw: cuffd_site, threadName: String? = nil) {
    name = unsafe raw.name.map { unsafe String(cString: $0) } ?? ""
    rank = LockRank(rawValue: unsafe raw.rank)
    let place = LockPlace(rawValue: unsafe raw.place)
    self.place = LockOrder.Report.Place(file: place.file, line: place.line)
    threadID = Int(unsafe raw.thread)
    self.threadName = threadName ?? LockRecord.threadName(unsafe raw.thread)
  }
}
