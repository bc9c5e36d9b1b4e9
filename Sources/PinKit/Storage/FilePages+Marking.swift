internal import Synchronization

/// Putting pages under writeback.
extension FilePages {
  func mark(_ pages: Range<Int>) {
    writeback.insert(pages)
    granted.remove(pages)
  }

  /// In pages: after so many the wrprotect lock is let go, and taken again for the rest.
  private static let markedTogether = 512

  /// Puts those of `runs` under writeback that are protected still, and returns them.
  func markUnopened(_ runs: [Range<Int>], _ again: inout DirtySet) -> [Range<Int>] {
    var marked = DirtySet(pageCount: pageCount)
    var next = 0
    while next < runs.count {
      // A hold costs two system calls, more than the marks of a short run.
      shared { _ in
        var count = 0
        while next < runs.count, count < Self.markedTogether {
          for page in runs[next] {
            let before = table.claim(page)
            if before.contains(.open) {
              again.append(page..<page + 1)
            } else {
              mark(page..<page + 1)
              marked.append(page..<page + 1)
            }
            table.releaseClaim(page)
          }
          count += runs[next].count
          next += 1
        }
      }
    }
    // A pin that came since the collection changes the page without a fault.
    var pinned = DirtySet(pageCount: pageCount)
    for run in marked.runs {
      for page in run where isPinnedForWriting(page) {
        pinned.append(page..<page + 1)
        dirty.insert(page..<page + 1)
        writeback.remove(page..<page + 1)
      }
    }
    again.formUnion(pinned)
    return marked.runs.flatMap { run in
      var parts: [Range<Int>] = []
      var page = run.lowerBound
      while page < run.upperBound {
        let start = writeback.first(in: page..<run.upperBound, isSet: true)
        page = writeback.first(in: start..<run.upperBound, isSet: false)
        if start < page { parts.append(start..<page) }
      }
      return parts
    }
  }
}
