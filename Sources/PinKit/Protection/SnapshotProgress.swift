internal import Synchronization

/// How far a snapshot is, for whoever watches the process: small, and apart from what it counts, so that looking holds nothing.
final class SnapshotProgress: Sendable {
  let pageClass: PageClass
  let pageCount: Int
  /// How much memory the copies take.
  let bytes = Atomic<Int>(0)
  /// How many pages are owed no more.
  let pages = Atomic<Int>(0)
  let isOpen = Atomic<Bool>(true)
  /// Faults copy to it: of a region's the newest, also when it is closed and older ones are not.
  let isNewest = Atomic<Bool>(true)

  init(_ pageClass: PageClass, pageCount: Int) {
    self.pageClass = pageClass
    self.pageCount = pageCount
  }
}

/// What has been registered and not gone.
final class WatchedSnapshots: Sendable {
  private struct Entry { weak var progress: SnapshotProgress? }
  private let entries = Mutex<[Entry]>([])

  func add(_ progress: SnapshotProgress) {
    entries.withLock { entries in
      entries.removeAll { $0.progress == nil }
      entries.append(Entry(progress: progress))
    }
  }

  /// Those that are open, or that older ones have their copies in.
  var all: [SnapshotProgress] { entries.withLock { $0.compactMap(\.progress) } }
}
