import SystemPackage
import Virtqueue

@testable import PinKit

/// Subscribes to nothing in particular.
private final class SilentSubscriber: MMUNotifier {}

/// An object to attach.
private final class Attachment: Sendable {}

/// The calls of a region, and of what is made from one.
enum RegionCalls {
  static func pages(_ region: Region) -> [ArgumentCall] {
    let small = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    return [
      ArgumentCall("touch", number: { try region.touch($0) }),
      ArgumentCall("mayBePinned", number: { _ = try region.mayBePinned($0) }),
      ArgumentCall("filePageState", number: { _ = try region.filePageState($0) }),
      ArgumentCall("isSealed", number: { _ = try region.isSealed($0) }),
      ArgumentCall("frameState", number: { _ = try region.frameState($0) }),
      ArgumentCall("lookUp", number: { _ = try region.lookUp($0) }),
      ArgumentCall(
        "attach",
        number: {
          try region.attach(Attachment(), to: $0)
          _ = region.privateData(of: $0)
          _ = try region.tryRelease($0)
        }),
      ArgumentCall("privateData", number: { _ = region.privateData(of: $0) }),
      ArgumentCall("tryRelease", number: { _ = try region.tryRelease($0) }),
      ArgumentCall("load", number: { _ = try region.load(fromByteOffset: $0, as: UInt64.self) }),
      ArgumentCall("store", number: { try region.store(UInt64(7), toByteOffset: $0) }),
      ArgumentCall("loadAcquiring", number: { _ = try region.loadAcquiring(fromByteOffset: $0) }),
      ArgumentCall("storeReleasing", number: { try region.storeReleasing(7, toByteOffset: $0) }),
      ArgumentCall("copy(from)", number: { unsafe try region.copy(fromByteOffset: $0, into: small) }),
      ArgumentCall("copy(to)", number: { unsafe try region.copy(UnsafeRawBufferPointer(small), toByteOffset: $0) }),
      ArgumentCall("page(at:)", address: { _ = region.page(at: $0) }),
      ArgumentCall(
        "freeze",
        number: {
          let frame = try region.lookUp(0)
          if frame.freeze(expecting: $0) { frame.unfreeze() }
        }),
      ArgumentCall(
        "withPageLock", number: { try region.lookUp(0).withPageLock(patience: Double($0)) {} }),
      ArgumentCall(
        "Pin.frameState",
        number: {
          let pin = try region.pin(0..<1)
          _ = pin.frameState(of: $0)
        }),
    ]
  }

  static func ranges(_ region: Region) -> [ArgumentCall] {
    [
      ArgumentCall("addresses(of:)", range: { _ = try region.addresses(of: $0) }),
      ArgumentCall("pin", range: { _ = try region.pin($0) }),
      ArgumentCall("pin(write)", range: { _ = try region.pin($0, [.write, .noWait]) }),
      ArgumentCall("pin(longTerm)", range: { _ = try region.pin($0, [.write, .longTerm]) }),
      ArgumentCall("discard", range: { try region.discard($0) }),
      ArgumentCall("tryDiscard", range: { _ = try region.tryDiscard($0) }),
      ArgumentCall("protect", range: { try region.protect($0, to: .readWrite) }),
      ArgumentCall("tryProtect", range: { _ = try region.tryProtect($0, to: .readWrite) }),
      ArgumentCall("reclaim", range: { _ = try region.reclaim($0) }),
      ArgumentCall("seal", range: { try region.seal($0) }),
      ArgumentCall("makeAccessible", range: { try region.makeAccessible($0) }),
      ArgumentCall("testYoung", range: { _ = try region.testYoung($0) }),
      ArgumentCall("clearYoung", range: { _ = try region.clearYoung($0) }),
      ArgumentCall("subscribe", range: { try region.subscribe(SilentSubscriber(), to: $0).remove() }),
      ArgumentCall(
        "IntervalSubscription",
        range: { try IntervalSubscription(region, pages: $0) { _ in .done }.remove() }),
      ArgumentCall("SecondaryMMU", range: { try SecondaryMMU(region, pages: $0).close() }),
      ArgumentCall("DirectMapping", range: { try DirectMapping(region, pages: $0).close() }),
      ArgumentCall("FixedBuffers", range: { _ = try FixedBuffers(region, [$0]) }),
    ]
  }

  static func files(_ region: Region, _ file: FileDescriptor) -> [ArgumentCall] {
    [
      ArgumentCall("read(into:)", range: { _ = try region.read(from: file, offset: 0, into: $0) }),
      ArgumentCall("read(offset:)", number: { _ = try region.read(from: file, offset: $0, into: 0..<4096) }),
      ArgumentCall("write(from:)", range: { _ = try region.write(to: file, offset: 0, from: $0) }),
      ArgumentCall("write(offset:)", number: { _ = try region.write(to: file, offset: min($0, 0), from: 0..<4096) }),
    ]
  }

  static func snapshots(_ region: Region) throws -> [ArgumentCall] {
    let snapshot = try region.snapshot()
    let small = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    return [
      ArgumentCall("Snapshot.read", number: { _ = try snapshot.read($0) }),
      ArgumentCall("Snapshot.seal(of:)", number: { _ = try snapshot.seal(of: $0) }),
      ArgumentCall("Snapshot.copy", range: { unsafe try snapshot.copy($0, into: small) }),
      ArgumentCall("Snapshot.forEachStoredRun", number: { unsafe try snapshot.forEachStoredRun(upTo: $0) { _, _ in } }),
      ArgumentCall(
        "captureLimit",
        number: { try region.snapshot(SnapshotOptions(captureLimit: $0, atLimit: .giveUp)).close() }),
    ]
  }

  static func mirrors(_ region: Region) throws -> [ArgumentCall] {
    let mirror = try SecondaryMMU(region, pages: 1..<3)
    return [
      ArgumentCall("translate", number: { try mirror.translate($0, for: .reading) }),
      ArgumentCall("isTranslated", number: { _ = mirror.isTranslated($0) }),
      ArgumentCall("withBytes(of:)", number: { unsafe try mirror.withBytes(of: $0, for: .writing) { _ in } }),
    ]
  }

  static func tracking(_ region: Region) -> [ArgumentCall] {
    func track(_ policy: FaultAroundPolicy) throws {
      let tracker = try region.trackWrites(.automatic, options: WriteTracking.Options(faultAround: policy))
      try region.touch(0)
      try region.touch(1)
      _ = try tracker.collect()
      try tracker.stop()
    }
    return [
      ArgumentCall("faultAround.fixed", number: { try track(.fixed($0)) }),
      ArgumentCall("faultAround.adaptive", number: { try track(.adaptive(maximum: $0)) }),
    ]
  }
}
