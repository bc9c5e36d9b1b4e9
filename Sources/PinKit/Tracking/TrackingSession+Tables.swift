/// The page tables that protecting a region fills with marks, also where there is no page: 2 MiB for each GiB of it. They stay when the marks
/// are gone, unless what is empty is dropped (Linux 6.14; before that the kernel keeps them until the memory is unmapped).
extension TrackingSession {
  /// In bytes; of less they are not worth a system call.
  private static let least = 256 << 20
  private static let step: UInt = 1 << 30
  /// What one table is for.
  private static let block: UInt = 2 << 20

  /// Gives the tables of what is empty back. Nothing protects the region, and the session's lock is held.
  ///
  /// Dropping what is empty must not meet a first write. So, for each GiB: register it for missing pages, so that nobody can bring one in
  /// ─► see what is empty, and drop that ─► unregister, which wakes whoever has waited. Between, this thread waits for nobody (K5). Where
  /// the kernel refuses any of it the tables stay, and nothing else happens.
  func giveTablesBack() {
    guard addresses.count >= Self.least, addresses.count / pageCount == Memory.pageSize else { return }
    switch backing.kind {
    case .anonymous, .pool, .adopted(.anonymous), .adopted(.sharedMemory): break
    default: return
    }
    do throws(PinError) {
      let map = try PageMap()
      // Not in user mode only: system calls would fail instead of wait.
      let hold = try Userfaultfd(features: [], access: [.device, .systemCall])
      try Uffd.closeInChild(hold.descriptor)
      defer { Uffd.forgetInChild(hold.descriptor) }
      let populated = PageMap.Query(anyOf: [.present, .swapped], returned: [])
      var at = addresses.start
      while at < addresses.end {
        let part = AddressRange(start: at, end: min(addresses.end, at + Self.step))
        // A signal handler that touches the part would wait for its own thread, and so would an allocation where the program has its
        // heap in the region, or where a thread waits for a page with the heap's lock.
        try Kernel.withSignalsBlocked { () throws(PinError) in
          try hold.register(part, for: .missing)
          TestHooks.reach(.holdingMissing, page: 0)
          Self.dropEmpty(part, map, populated)
          TestHooks.reach(.holdingMissing, page: 1)
          try hold.unregister(part)
        }
        at = part.end
      }
    } catch {}
  }

  /// Nobody can bring a page in; does not allocate. What the kernel will not tell of stays.
  private static func dropEmpty(_ part: AddressRange, _ map: borrowing PageMap, _ populated: PageMap.Query) {
    var empty = part.start
    let result = map.scanResult(part, populated) { run, _ in
      dropBlocks(from: empty, to: run.start)
      empty = run.end
    }
    if result == 0 { dropBlocks(from: empty, to: part.end) }
  }

  private static func dropBlocks(from start: UInt, to end: UInt) {
    let (first, last) = ((start + block - 1) & ~(block - 1), end & ~(block - 1))
    if first < last { _ = Memory.adviseResult(AddressRange(start: first, end: last), .dontNeed) }
  }
}
