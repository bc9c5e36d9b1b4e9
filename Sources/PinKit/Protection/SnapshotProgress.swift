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
  private struct List {
    var entries: [Entry] = []
    /// How many there may be before those that are gone are looked for: so that of many snapshots not each looks at all others.
    var limit = 16
  }
  private let list = Mutex(List())

  func add(_ progress: SnapshotProgress) {
    list.withLock { list in
      if list.entries.count >= list.limit {
        list.entries.removeAll { $0.progress == nil }
        list.limit = max(16, 2 * list.entries.count)
      }
      list.entries.append(Entry(progress: progress))
    }
  }

  /// Those that are open, or that older ones have their copies in.
  var all: [SnapshotProgress] { list.withLock { $0.entries.compactMap(\.progress) } }
}
