/// Whether somebody needs the moment when every page is protected, and how it is come to.
enum ArmingMoment: Sendable {
  /// Pages that are pinned for writing are left open: they are in every set (P6), and drivers and system calls get at them all the time
  /// (P8, P9).
  case notNeeded
  /// Whoever writes waits until all is protected.
  case atOnce
  /// Most is protected before, a slice at a time, while writers go on: they wait for what was opened since.
  case inSlices
}

/// A way to find out which pages of a region were written. Calls are serialized by the session.
protocol TrackingMechanism: AnyObject, Sendable {
  var kind: WriteTracking.Mechanism { get }
  /// Registers the region and protects all of it. On error everything is as before.
  ///
  /// `armed` runs under the exclusive wrprotect lock at the moment when every page is protected: no page can be written until it
  /// has returned. Then pages that are pinned for writing are open again.
  func start(_ moment: ArmingMoment, armed: (borrowing FaultDomain) -> Void) throws(PinError)
  /// Adds the pages written since the last harvest and protects them again in one step: a write that races with it is in this
  /// harvest or in the next. On error, `dirty` holds what was taken and must be kept. `armed` as in ``start(_:armed:)``.
  func harvest(
    into dirty: inout DirtySet, _ event: InvalidationRange.Event, _ moment: ArmingMoment,
    armed: (borrowing FaultDomain) -> Void
  ) throws(PinError)
  /// Lifts the protection for as long as nobody tracks; what was written before was harvested.
  func suspend() throws(PinError)
  func resume(_ moment: ArmingMoment, armed: (borrowing FaultDomain) -> Void) throws(PinError)
  /// Lifts the protection for good.
  func stop()
}
