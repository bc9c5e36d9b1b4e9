internal import PinKit

/// The same through PinKit: a region over the file.
final class GupManaged: GupMemory {
  let name = "with them"
  private let space: AddressSpace
  private let store: WatchedStore
  private let region: Region
  private let tracker: WriteTracker
  private var held: HeldPin?
  private var snapshot: Snapshot?
  /// After which steps the tracker reported all pages, or not all of them.
  private(set) var reported: [GupStep: Bool] = [:]
  /// What a snapshot from between the two writes has of each page, read after the second.
  private(set) var snapped: [GupBytes] = []

  init(_ file: DemoFile, pages: Int) throws {
    space = try DemoSpace.make()
    store = WatchedStore(try FileStore(path: file.path))
    region = try space.map(.file(store), pages: pages)
    tracker = try region.trackWrites()
  }

  func bringIn() throws { _ = try bytes() }

  /// For a short time, as far as PinKit is told: a long-term pin would be refused. The rules hold however long it lasts.
  func pin() throws -> AddressRange {
    let pin = HeldPin(try region.pin(0..<region.pageCount, .write))
    held = pin
    return unsafe pin.pin.withUnsafeBytes { bytes in
      AddressRange(start: UInt(bitPattern: bytes.baseAddress), count: bytes.count)
    }
  }
  func unpin() throws { held = nil }

  func writeBack(_ body: @escaping @Sendable () -> Void) throws {
    store.set { $0.writing = { transfer throws(PinError) in if transfer.pages.contains(0) { body() } } }
    defer { store.set { $0.writing = { _ throws(PinError) in } } }
    try region.flush()
  }

  func dropAndBringIn() throws {
    try region.reclaim(0..<region.pageCount)
    _ = try bytes()
  }

  func state(of page: Int) throws -> GupState {
    let state = try region.filePageState(page)
    let isPinned = try region.frameState(page).counts.pins > 0
    return GupState(isDirty: state.isDirty, isPinned: isPinned, isUnderWriteback: state.isUnderWriteback)
  }

  func bytes() throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: region.addresses.count)
    unsafe try bytes.withUnsafeMutableBytes { unsafe try region.copy(fromByteOffset: 0, into: $0) }
    return bytes
  }

  func passed(_ step: GupStep) throws {
    switch step {
    // Inside a writeback a collection would wait for it.
    case .writing, .laterWriting: return
    case .written: snapshot = try region.snapshot()
    case .secondWrite:
      guard let snapshot else { break }
      snapped = try (0..<region.pageCount).map { GupBytes(try snapshot.read($0), page: $0) }
      snapshot.close()
    default: break
    }
    reported[step] = try tracker.collect().count == region.pageCount
  }

  func close() throws {
    try tracker.stop()
    try space.close()
  }
}
