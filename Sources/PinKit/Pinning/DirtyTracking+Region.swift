internal import Synchronization

extension Region {
  /// Whether a long-term pin for writing of the region's pages would go around somebody who must hear of writes (P1, P2).
  ///
  /// The backing alone answers for every kind of memory but an adopted mapping of a file, for which `/proc/self` is read: see
  /// ``DirtyTracking/of(_:)`` for what that costs. Blocks on nothing else.
  ///
  /// - Throws: ``PinError``: `.unmapped`, `.notInherited`; of reading `/proc/self`, for adopted mappings of files.
  public var needsDirtyTracking: Bool {
    get throws(PinError) { try dirtyTracking().contains(where: \.needsDirtyTracking) }
  }

  /// Whether the region's page-table entries start read-only now, so that the first write to a page is noticed (P2): its file wants to
  /// hear of it, or its shared pages are under PinKit's protection.
  ///
  /// - Throws: As ``needsDirtyTracking``.
  public var wantsWriteNotify: Bool { get throws(PinError) { try dirtyTracking().contains(where: \.wantsWriteNotify) } }

  /// Whether the kernel and the file under the region allow a pin of its pages.
  ///
  /// - Throws: As ``needsDirtyTracking``.
  public func pinVerdict(for access: PinVerdict.Access, lasting duration: PinVerdict.Duration) throws(PinError) -> PinVerdict
  {
    PinVerdict(of: try dirtyTracking(), for: access, lasting: duration)
  }

  /// A pin for the length of one transfer is refused only of memory that has no pages to pin, as by the kernel: secret memory, and a
  /// device's. Which other memory is, its backing says.
  func requireAllowed(_ options: PinOptions) throws(PinError) {
    guard options.contains(.longTerm) else {
      guard case .adopted(.file) = backing.kind, pinDomain.load(ordering: .acquiring) == 0 else { return }
      // Where /proc cannot be read any more nothing speaks against it.
      if let verdict = try? pinVerdict(for: .reading, lasting: .short) { try verdict.check("pin", addresses) }
      return
    }
    try pinVerdict(for: options.contains(.write) ? .writing : .reading, lasting: .long).check("pin for long", addresses)
  }

  /// A region is readable and writable whatever its tracker has made of the mapping at the moment.
  private func dirtyTracking() throws(PinError) -> [DirtyTracking] {
    guard space.isOfThisProcess else { throw .notInherited("look at a mapping") }
    // The addresses may be somebody else's by now.
    if gate.isClosed { throw PinError(.unmapped, operation: "look at a mapping", range: addresses) }
    guard let memory = constantMemory else {
      return try DirtyTracking.of(addresses).map { found in
        var found = found
        (found.isReadable, found.isWritable) = (true, true)
        found.isWriteProtectable = found.isWriteProtectable || isProtected
        return found
      }
    }
    return [
      DirtyTracking(
        range: addresses, memory: memory.kind, isShared: memory.isShared, isReadable: true, isWritable: memory.isWritable,
        isWriteProtectable: isProtected)
    ]
  }

  /// What the backing alone says.
  private var constantMemory: (kind: MemoryKind, isShared: Bool, isWritable: Bool)? {
    switch backing.kind {
    case .anonymous, .adopted(.anonymous): (.anonymous, false, true)
    case .pool, .adopted(.sharedMemory): (.sharedMemory, true, true)
    case .hugetlb: (.hugetlb, true, true)
    case .file(let stored):
      (
        .store(needsDirtyTracking: stored.store.geometry.needsDirtyTracking), true, !stored.store.geometry.isReadOnly
      )
    // Of adopted hugetlb memory the backing does not say whether it is shared.
    case .adopted(.hugetlb), .adopted(.file): nil
    }
  }

  private var isProtected: Bool { attachments.find(RegionProtection.self)?.slotIndex != nil }
}
