internal import Synchronization

/// What snapshots without a limit may take of the room that memory cgroups leave the process (K7): each half of what is left when all others
/// have taken what they may, so that together they never take all of it.
enum CaptureShares {
  @safe private struct Share {
    /// Takes itself out before it goes.
    unowned(unsafe) let store: CaptureStore
    /// In bytes, with what it has already.
    let most: Int
    /// What it had when the room was read.
    var seen: Int
    var left: Int { unsafe store.isLost ? 0 : max(0, most - seen) }
  }

  private struct Shares {
    var generation = Kernel.forkGeneration
    var open: [ObjectIdentifier: Share] = [:]
    /// When the room was read.
    var readAt: UInt64 = 0
  }
  private static let shares = Mutex(Shares())

  /// The share of `store`, beyond what it has, in bytes, where `previous` will take nothing more; `nil` where no cgroup limits the process.
  static func begin(_ store: CaptureStore, insteadOf previous: CaptureStore?) -> Int? {
    let (room, readAt) = MemoryControlGroup.recentRoom()
    return withShares { shares in
      guard let room else {
        shares.open[ObjectIdentifier(store)] = nil
        return nil
      }
      var others = 0
      if readAt > shares.readAt {
        shares.readAt = readAt
        for key in shares.open.keys { shares.open[key]!.seen = unsafe shares.open[key]!.store.bytes }
      } else {
        // What these two took since then is not in the room any more.
        others += store.bytes - min(store.bytes, shares.open[ObjectIdentifier(store)]?.seen ?? 0)
        if let previous, previous !== store {
          others += previous.bytes - min(previous.bytes, shares.open[ObjectIdentifier(previous)]?.seen ?? 0)
        }
      }
      for share in shares.open.values {
        if unsafe share.store !== store && share.store !== previous { others += share.left }
      }
      let half = max(0, room - others) / 2
      let has = store.bytes
      shares.open[ObjectIdentifier(store)] = Share(store: store, most: store.most(under: has + half), seen: has)
      return half
    }
  }

  /// It takes nothing more, or has a limit of its own.
  static func end(_ store: CaptureStore) { withShares { $0.open[ObjectIdentifier(store)] = nil } }

  private static func withShares<Result>(_ body: (inout Shares) -> Result) -> Result {
    // A child that was forked in the middle could never take a snapshot.
    Uffd.withoutForks {
      shares.withLock { shares in
        // A child of fork() has none of its parent's snapshots.
        if shares.generation != Kernel.forkGeneration { shares = Shares() }
        return body(&shares)
      }
    }
  }
}
