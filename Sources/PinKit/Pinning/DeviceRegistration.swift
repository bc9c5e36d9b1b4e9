internal import Logging
internal import Synchronization

/// Pages that a driver has registered, and the pin that makes that safe, for exactly as long (P8).
///
/// A driver that pins memory under a lock of its own (AF_XDP, VFIO, CUDA) cannot wait for a fault: memory that is protected, or not there, it
/// refuses with `EFAULT` or `ENOMEM`, and no fault is ever reported. So the pages are pinned first and registered then; and
/// they are unregistered first and unpinned then, so that every collection has them until after the device's last write (P6).
///
/// Noncopyable; dropping it does what ``close()`` does. It keeps its region alive. One thread at a time.
@safe public struct DeviceRegistration: ~Copyable {
  private let registration: KeptRegistration

  init(_ region: Region, _ pin: consuming Pin, _ unregister: @escaping Unregister) {
    registration = KeptRegistration(region, KeptPin(pin), unregister)
  }

  /// Takes a registration back; what it throws is thrown by ``close()``.
  public typealias Unregister = () throws -> Void

  public var region: Region { registration.region }
  public var pages: Range<Int> { registration.pages }

  /// Runs the caller's unregistration, and then unpins the pages. A second call does nothing.
  ///
  /// - Throws: ``PinError`` `.notInherited` in a child of `fork()`, or what the unregistration throws. The device may write on then, so the pages stay pinned, and in every collection: call it again.
  public func close() throws { try registration.end() }
}

/// What a registration consists of, and the order in which it ends.
private final class KeptRegistration {
  let region: Region
  let pages: Range<Int>
  private var kept: (pin: KeptPin, unregister: DeviceRegistration.Unregister)?

  init(_ region: Region, _ pin: KeptPin, _ unregister: @escaping DeviceRegistration.Unregister) {
    self.region = region
    pages = pin.pin.pages
    kept = (pin, unregister)
  }

  deinit {
    // A child of fork() has registered nothing.
    guard region.isOfThisProcess, let kept else { return }
    do { try end() } catch {
      // Whoever may still write is not to be forgotten: the memory stays, and while the region is there it cannot go, and says why.
      _ = unsafe Unmanaged.passRetained(kept.pin)
      region.space.configuration.logger.error(
        "\(region.addressesUnchecked(of: pages)) could not be unregistered from its device, and stays pinned: \(error)")
    }
  }

  func end() throws {
    guard let kept else { return }
    // What a child of fork() unregistered would be its parent's.
    guard region.isOfThisProcess else { throw PinError.notInherited("close a registration") }
    try kept.unregister()
    self.kept = nil
  }
}

extension Region {
  /// Pins pages, and registers them with a driver.
  ///
  /// ```swift
  /// let registration = try region.register(0..<64) { bytes in
  ///   let key = try device.register(bytes)
  ///   return { try device.unregister(key) }
  /// }
  /// ```
  ///
  /// For writing every page is there before `register` is called, its own and open. For reading it is not opened, nor brought in if nobody has
  /// touched it: it may be protected, and shared where the ``ReusePolicy`` lets a pin for reading share it. The bytes are contiguous, and stay where they are until the
  /// registration is closed: of `.pool` memory they are the pool's own mapping, of other memory the region's. A snapshot or a clone that is
  /// taken at that very moment protects pages for as long as it copies them: if `register` throws then, it is called again, for
  /// writing once the pages are open again.
  ///
  /// Blocks as ``pin(_:_:)`` does.
  ///
  /// - Parameters:
  ///   - pages: Page indices, at least one: all of them or none.
  ///   - access: What the device does. A device that was registered for reading must not write: its writes are in no collection.
  ///   - register: Registers the bytes, and returns what takes that back. If it throws, it has registered nothing.
  /// - Throws: What ``pin(_:_:)`` throws for a long-term pin, if any page cannot be pinned; what `register` throws. Nothing is pinned then. Where
  ///   `register` throws, the next dirty set has the pages: whoever had them may have written (<doc:Pins#Refusals-and-dirty-sets>).
  public func register(
    _ pages: Range<Int>, for access: PinVerdict.Access = .writing,
    with register: (UnsafeMutableRawBufferPointer) throws -> DeviceRegistration.Unregister
  ) throws -> DeviceRegistration {
    let options: PinOptions = access == .writing ? [.write, .longTerm] : .longTerm
    let pin = try pinWhole(pages, options)
    let unregister = try unsafe self.register(
      UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: pin.start), count: pin.byteCount), pages,
      for: access, with: register)
    return DeviceRegistration(self, pin, unregister)
  }

  private func register(
    _ bytes: UnsafeMutableRawBufferPointer, _ pages: Range<Int>, for access: PinVerdict.Access,
    with register: (UnsafeMutableRawBufferPointer) throws -> DeviceRegistration.Unregister
  ) throws -> DeviceRegistration.Unregister {
    var deadline = Deadline(seconds: space.configuration.patience)
    while true {
      let before = pinClosings
      do { return try unsafe register(bytes) } catch {
        // Whoever finds the pages closed need not look at memory that the pool maps as well.
        let wasClosed = before & 1 == 1 || pinClosings != before
        guard frames == nil, wasClosed, !deadline.isOver() else { throw error }
        if access == .writing {
          // Waits until the snapshot has its copies.
          for page in pages { try touch(page) }
        } else {
          // A touch would be a write (P10).
          Kernel.pause(nanoseconds: 50_000)
        }
      }
    }
  }

  /// See ``FaultDomain/pinClosings``; of a region that has pins.
  private var pinClosings: UInt64 {
    guard let domain = unsafe UnsafePointer<FaultDomain>(bitPattern: pinDomain.load(ordering: .acquiring)) else { return 0 }
    return unsafe domain.pointee.pinClosings.load(ordering: .sequentiallyConsistent)
  }
}
