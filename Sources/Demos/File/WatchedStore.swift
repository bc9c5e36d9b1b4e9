internal import PinKit
internal import Synchronization

/// A store in front of another that lets the demo look on, wait, and fail.
final class WatchedStore: PageStore {
  struct Hooks: Sendable {
    /// Before the bytes are asked for.
    var reading: @Sendable (Range<Int>) throws(PinError) -> Void = { _ in }
    var granting: @Sendable (Range<Int>) throws(PinError) -> Void = { _ in }
    /// Before they are written: a transfer for which it throws is not.
    var writing: @Sendable (PageTransfer) throws(PinError) -> Void = { _ in }
    var flushing: @Sendable () throws(PinError) -> Void = {}
    /// Whether it answers without waiting what the store behind it does.
    var answersAtOnce = true
  }

  let store: any PageStore
  private let hooks = Mutex(Hooks())

  init(_ store: any PageStore) { self.store = store }

  var geometry: StoreGeometry { store.geometry }

  func set(_ change: (inout Hooks) -> Void) { hooks.withLock { change(&$0) } }
  private var now: Hooks { hooks.withLock { $0 } }

  func read(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) throws(PinError) {
    try now.reading(pages)
    unsafe try store.read(pages, into: memory)
  }

  func readNow(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) -> Bool {
    let hooks = now
    guard hooks.answersAtOnce, unsafe store.readNow(pages, into: memory) else { return false }
    do throws(PinError) { try hooks.reading(pages) } catch { return false }
    return true
  }

  func write(_ transfers: [PageTransfer]) -> [PinError?] {
    let hooks = now
    let refusals = transfers.map { transfer -> PinError? in
      do throws(PinError) { try hooks.writing(transfer) } catch { return error }
      return nil
    }
    let rest = zip(transfers, refusals).filter { $0.1 == nil }.map(\.0)
    var outcomes = rest.isEmpty ? [][...] : store.write(rest)[...]
    return refusals.map { $0 ?? outcomes.popFirst() ?? nil }
  }

  func pageMakeWritable(_ pages: Range<Int>) throws(PinError) {
    try now.granting(pages)
    try store.pageMakeWritable(pages)
  }

  func pageMakeWritableNow(_ pages: Range<Int>) -> Bool {
    let hooks = now
    guard hooks.answersAtOnce, store.pageMakeWritableNow(pages) else { return false }
    do throws(PinError) { try hooks.granting(pages) } catch { return false }
    return true
  }

  func flush() throws(PinError) {
    try now.flushing()
    try store.flush()
  }
}
