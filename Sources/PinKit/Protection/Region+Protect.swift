internal import Synchronization

/// What the program may do with pages of a region.
public enum PageAccess: Sendable, Hashable {
  case none
  case readOnly
  case readWrite
}

extension Region {
  /// Changes what the program may do with `pages`, as mprotect(2) does. Tracking goes on beneath it.
  ///
  /// A forbidden access through a pointer is the program's own SIGSEGV; `load`, `store` and `copy` throw `.accessDenied`. When the call
  /// returns, no write to a page that lost the right is still on its way (W1). A ``discard(_:whilePinned:)`` that was under way counts as
  /// having come first.
  ///
  /// - Parameters:
  ///   - pages: Page indices.
  ///   - access: ``PageAccess/readOnly`` unless given.
  /// - Throws: ``PinError``: `.outOfBounds`, `.unmapped`, `.wouldDeadlock` from a fault callback, `.outOfMemory` where
  ///   `vm.max_map_count` is reached; nothing has changed then.
  public func protect(_ pages: Range<Int>, to access: PageAccess = .readOnly) throws(PinError) {
    _ = try addresses(of: pages)
    try requireOutsideFaultPath("protect")
    try enter("protect")
    defer { leave() }
    guard !pages.isEmpty else { return }
    let event: InvalidationRange.Event = pages.count == 1 ? .protectionPage : .protectionRange
    while true {
      // Before any lock is taken: a subscriber may wait for a thread that is inside a checked access (N8).
      let protection = attachments.find(RegionProtection.self)
      let version = unsafe protection?.domain.pointee.subscriptionVersion ?? 0
      let invalidation = try protection?.start(event, pages)
      defer { invalidation?.end() }
      if try protectNow(pages, access, ifNobodyCameSince: version) { return }
    }
  }

  /// False if somebody has subscribed since, who must be told first.
  private func protectNow(
    _ pages: Range<Int>, _ access: PageAccess, ifNobodyCameSince version: UInt64
  ) throws(PinError) -> Bool {
    try withRightsChanging { () throws(PinError) in
      try layout.withLock { () throws(PinError) in
        guard let protection = attachments.find(RegionProtection.self) else {
          try apply(access, to: pages, armed: false)
          return true
        }
        try protection.throwIfFailed("protect")
        return try protection.exclusive { domain throws(PinError) in
          guard domain.subscriptionVersion == version else { return false }
          // What was closed for good stays so.
          try protection.throwIfFailed("protect")
          try apply(access, to: pages, armed: domain.delivery.load(ordering: .acquiring) == .mprotect)
          return true
        }
      }
    }
  }

  func apply(_ access: PageAccess, to pages: Range<Int>, armed: Bool) throws(PinError) {
    do throws(PinError) { try set(access, to: pages, armed: armed) } catch {
      // The kernel changes what lies before the mapping that it could not split.
      restore(pages, armed: armed)
      throw error
    }
  }

  /// Gives every page the rights that the page table says it has.
  private func restore(_ pages: Range<Int>, armed: Bool) {
    var start = pages.lowerBound
    while start < pages.upperBound {
      let rights = rights(of: start, armed: armed)
      var end = start + 1
      while end < pages.upperBound, self.rights(of: end, armed: armed) == rights { end += 1 }
      _ = Memory.protect(addressesUnchecked(of: start..<end), rights)
      start = end
    }
  }

  private func rights(of page: Int, armed: Bool) -> Mapping.Protection {
    let entry = table[page]
    return armed && !entry.contains(.open) && entry.rights == .readWrite ? .read : entry.rights
  }

  private func set(_ access: PageAccess, to pages: Range<Int>, armed: Bool) throws(PinError) {
    if access != .readWrite { table.noteDeniedPages() }
    let range = addressesUnchecked(of: pages)
    switch access {
    case .none: try change(range, [])
    case .readOnly: try change(range, .read)
    case .readWrite where armed:
      // Pages that a tracker has armed stay read-only to the processor until they are written.
      var start = pages.lowerBound
      while start < pages.upperBound {
        let isOpen = table[start].contains(.open)
        var end = start + 1
        while end < pages.upperBound, table[end].contains(.open) == isOpen { end += 1 }
        try change(addressesUnchecked(of: start..<end), isOpen ? .readWrite : .read)
        start = end
      }
    case .readWrite: try change(range, .readWrite)
    }
    let denied: PageTable.Entry =
      switch access {
      case .none: [.readDenied, .writeDenied]
      case .readOnly: .writeDenied
      case .readWrite: []
      }
    guard table.hasDeniedPages else { return }
    for page in pages {
      table.insert(denied, at: page)
      table.remove(PageTable.Entry([.readDenied, .writeDenied]).subtracting(denied), at: page)
    }
  }

  private func change(_ range: AddressRange, _ protection: Mapping.Protection) throws(PinError) {
    try PinError.check(Memory.protect(range, protection), "mprotect", range)
  }
}
