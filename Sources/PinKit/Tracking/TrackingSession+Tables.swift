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
  /// ─► see what is empty ─► drop that ─► unregister, which wakes whoever has waited. Where the kernel refuses any of it the tables
  /// stay, and nothing else happens.
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
      var at = addresses.start
      while at < addresses.end {
        let part = AddressRange(start: at, end: min(addresses.end, at + Self.step))
        try hold.register(part, for: .missing)
        defer { do throws(PinError) { try hold.unregister(part) } catch {} }
        try Self.dropEmpty(part, map)
        at = part.end
      }
    } catch {}
  }

  private static func dropEmpty(_ part: AddressRange, _ map: borrowing PageMap) throws(PinError) {
    var holes: [AddressRange] = []
    var empty = part.start
    func note(_ end: UInt) {
      let (first, last) = ((empty + block - 1) & ~(block - 1), end & ~(block - 1))
      if first < last { holes.append(AddressRange(start: first, end: last)) }
    }
    try map.scan(part, .init(anyOf: [.present, .swapped], returned: [])) { run, _ in
      note(run.start)
      empty = run.end
    }
    note(part.end)
    for hole in holes { _ = Memory.adviseResult(hole, .dontNeed) }
  }
}
