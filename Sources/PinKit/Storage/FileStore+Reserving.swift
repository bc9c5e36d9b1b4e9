internal import SystemPackage
internal import Synchronization

extension FileStore {
  /// Takes space for the holes among `pages`, once (N3).
  ///
  /// Blocks while the file system looks for space; takes no system call for pages that it has been asked about.
  /// - Throws: `.outOfSpace`, also for a quota; `.readOnly`; `.inputOutput`; `.outOfBounds`.
  public func pageMakeWritable(_ pages: Range<Int>) throws(PinError) {
    guard !geometry.isReadOnly else { throw readOnly() }
    try checkBounds(pages)
    guard let reservations, !reservations.contains(pages), reservations.isPossible else { return }
    if !reserve(reservations.widened(pages)).isEmpty { return }
    let result = file.reserve(pages.lowerBound * Memory.pageSize..<pages.upperBound * Memory.pageSize)
    switch -Int(result) {
    case 0: reservations.insert(pages)
    case Int(Errno.notSupported.rawValue), Int(Errno.noFunction.rawValue): reservations.giveUp()
    default: throw .store(Int(result), "reserve pages \(pages) of \(file.name)")
    }
  }

  /// True where nothing has to be reserved any more; false for pages that the store does not have.
  public func pageMakeWritableNow(_ pages: Range<Int>) -> Bool {
    if geometry.isReadOnly || pages.lowerBound < 0 || pages.upperBound > geometry.pageCount { return false }
    guard let reservations else { return true }
    return !reservations.isPossible || reservations.contains(pages)
  }

  private func reserve(_ pages: Range<Int>) -> Range<Int> {
    guard file.reserve(pages.lowerBound * Memory.pageSize..<pages.upperBound * Memory.pageSize) == 0 else { return 0..<0 }
    reservations?.insert(pages)
    return pages
  }

  func readOnly() -> PinError {
    PinError(.readOnly, operation: "write \(file.name)", advice: "The store was opened read-only: open it for writing.")
  }
}

/// For which pages of a file space was taken.
final class SpaceReservations: Sendable {
  private let pages: OwnedPageBitmap
  private let mayTry = Atomic(true)
  /// In pages: what is asked for at once, while there is room for it.
  static let step = 16

  init(pageCount: Int) throws(PinError) { pages = try OwnedPageBitmap(pageCount: pageCount) }

  /// False once the file system has said that it cannot. Seen late, it is asked once more, and says the same.
  var isPossible: Bool { mayTry.load(ordering: .relaxed) }
  func giveUp() { mayTry.store(false, ordering: .relaxed) }
  func insert(_ run: Range<Int>) { pages.bits.insert(run) }
  /// Whether space was taken for all of them. It is not given back: what is seen late is asked for once more.
  func contains(_ run: Range<Int>) -> Bool {
    if run.upperBound > pages.bits.pageCount { return false }
    // A method as an argument allocates in a build without optimization, and the fault path asks (K2).
    for page in run where !pages.bits.contains(page) { return false }
    return true
  }

  func widened(_ run: Range<Int>) -> Range<Int> {
    let start = run.lowerBound / Self.step * Self.step
    return start..<min(pages.bits.pageCount, (run.upperBound + Self.step - 1) / Self.step * Self.step)
  }
}

/// A ``PageBitmap`` with memory of its own.
@safe final class OwnedPageBitmap: Sendable {
  let bits: PageBitmap
  private let memory: Mapping

  init(pageCount: Int) throws(PinError) {
    memory = try Mapping(count: PageBitmap.size(pageCount: pageCount) + 8)
    let start = unsafe UnsafeMutableRawPointer(bitPattern: memory.range.start)!
    // The mapping is zeroed, and lives as long as this object.
    unsafe bits = PageBitmap(
      memory: start + 8, top: start.bindMemory(to: Atomic<UInt64>.self, capacity: 1), pageCount: pageCount)
  }
}
