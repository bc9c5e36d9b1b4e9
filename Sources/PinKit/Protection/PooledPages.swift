internal import Synchronization

/// A region of pool frames, as those know it who decide at the fault about the pages of one region.
class PooledPages: @unchecked Sendable {  // subclasses hold atomics and preallocated memory only
  /// Its id.
  final let region: UInt64
  final let addresses: AddressRange
  final let pageCount: Int
  final let table: PageTable
  final let frames: RegionFrames
  final let counters: FaultCounters
  final let protection: RegionProtection
  /// With the region's session, once it has begun.
  final let participant = Mutex<UInt64?>(nil)
  final let isOver = Atomic<Bool>(false)
  private let forkGeneration = Kernel.forkGeneration

  init(_ region: Region) throws(PinError) {
    guard let frames = region.frames else { preconditionFailure("a region of pool frames without frames") }
    self.region = region.id
    addresses = region.addresses
    pageCount = region.pageCount
    table = region.table
    self.frames = frames
    counters = region.counters
    protection = try region.protection()
  }

  /// False in a child of fork(), which has none of it.
  final var isOfThisProcess: Bool { forkGeneration == Kernel.forkGeneration }

  /// Runs `body` as a fault does, with the wrprotect lock shared.
  final func shared<Result>(_ body: (borrowing FaultDomain) -> Result) -> Result {
    unsafe shared(protection.domain.pointee, body)
  }

  private func shared<Result>(_ domain: borrowing FaultDomain, _ body: (borrowing FaultDomain) -> Result) -> Result {
    Kernel.withSignalsBlocked { domain.lock.withShared { _ in body(domain) } }
  }
}
