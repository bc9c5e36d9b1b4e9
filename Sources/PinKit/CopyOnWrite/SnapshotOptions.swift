/// How ``Region/snapshot(_:)`` keeps the bytes of its moment.
public struct SnapshotOptions: Sendable, Hashable {
  /// What happens when a page is about to change and the capture limit leaves no room for its bytes.
  public enum LimitPolicy: Sendable, Hashable {
    /// Threads that write such a page wait: until pages are released, or the snapshot is closed. Reads never wait.
    case holdWriters
    /// The snapshot is given up: the writer goes on, and reads of the snapshot throw `.snapshotLost`.
    case giveUp
  }

  /// How writes are noticed. It must be synchronous, and agree with the one that is active in the region, if there is one.
  /// `.automatic`: handler threads, or mprotect where userfaultfd cannot be used.
  public var mechanism: WriteTracking.Mechanism
  /// How many bytes may be kept while this is the region's newest snapshot; `nil`: as many as there is memory for. Where a memory cgroup limits
  /// the process, that is half of what its limit leaves when the snapshot is taken, and snapshots of other regions without a limit may not
  /// take yet (K7): beyond, the snapshot is given up, whatever ``atLimit`` says, because the kernel would kill the process.
  public var captureLimit: Int?
  public var atLimit: LimitPolicy
  /// Whether a background thread keeps pages ahead of their writers, so that fewer writers have to. Off unless asked for, as it
  /// takes memory for every page that is not zero (up to the limit), also for those that nobody will write.
  public var sweep: Bool

  public init(
    mechanism: WriteTracking.Mechanism = .automatic, captureLimit: Int? = nil, atLimit: LimitPolicy = .holdWriters,
    sweep: Bool = false
  ) {
    self.mechanism = mechanism
    self.captureLimit = captureLimit
    self.atLimit = atLimit
    self.sweep = sweep
  }

  /// What `store` may take from now on in bytes, where `previous` will take nothing more, and whether the snapshot is given up there.
  func effectiveLimit(of store: CaptureStore, insteadOf previous: CaptureStore?) -> (bytes: Int, givesUp: Bool) {
    if let captureLimit {
      CaptureShares.end(store)
      return (captureLimit, atLimit == .giveUp)
    }
    guard let share = CaptureShares.begin(store, insteadOf: previous) else { return (Int.max, false) }
    return (share, true)
  }
}
