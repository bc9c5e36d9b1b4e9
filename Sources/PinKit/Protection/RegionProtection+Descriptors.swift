internal import Logging
internal import Synchronization

extension RegionProtection {
  /// Whether pages come from a store: those that are not there trap, too.
  var hasSource: Bool { unsafe domain.pointee.hasSource }

  /// Whether pages may be sealed: they trap by not being mapped.
  var hasSeals: Bool { unsafe domain.pointee.hasSeals }

  func openDescriptor(_ delivery: FaultDelivery, slot: Int) throws(PinError) {
    var features: Userfaultfd.Features = [.pagefaultFlagWP, .wpUnpopulated, .eventRemap, .eventRemove]
    // Pages of a pool go to other frames in the middle of a fault, which must not wait until somebody has read of it.
    if !isPool { features.insert(.eventUnmap) }
    if hasHugeFrames || hasSeals, delivery != .asynchronous { features.insert(.minorShmem) }
    if hasSource { features.formUnion([.missingShmem, .minorShmem]) }
    if delivery == .inPlace { features.insert(.sigbus) }
    if delivery == .asynchronous { features.insert(.wpAsync) }
    if unsafe domain.pointee.isPrivateAnonymous {
      // Merging replaces the page-table entry without its protection. Refused where the kernel cannot merge.
      try? Memory.advise(addresses, .unmergeable)
    } else {
      features.insert(.wpHugetlbfsShmem)
    }
    let access = try Uffd.withoutForks { () throws(PinError) in try open(features, delivery, slot: slot) }
    if access == .userModeOnly, !Self.hasWarned.exchange(true, ordering: .relaxed) {
      handler.logger.warning(
        "userfaultfd is open in user mode only: system calls that write into protected memory fail with EFAULT")
    }
  }

  /// It is so for the whole process, and said once.
  private static let hasWarned = Atomic<Bool>(false)

  /// A child that was forked in between would keep a descriptor that it does not know of.
  private func open(
    _ features: Userfaultfd.Features, _ delivery: FaultDelivery, slot: Int
  ) throws(PinError) -> Userfaultfd.Access {
    let made = try Userfaultfd(features: features)
    try made.register(addresses, for: unsafe Self.traps(domain.pointee))
    let descriptor = try Uffd.duplicate(made.descriptor)
    let access = made.access
    let spare = made.release()
    // A reader that is woken by the first message looks for them.
    state.withLock { _ in
      unsafe domain.pointee.identify(by: descriptor)
      unsafe domain.pointee.descriptor.store(descriptor, ordering: .sequentiallyConsistent)
      unsafe domain.pointee.spareDescriptor.store(spare, ordering: .sequentiallyConsistent)
    }
    do throws(PinError) {
      try Uffd.closeInChild(descriptor)
      try Uffd.closeInChild(spare)
      // Before a reader can hear of it: pages that are not mapped may trap already, and who reads of one without knowing how wakes nobody.
      unsafe domain.pointee.delivery.store(delivery, ordering: .sequentiallyConsistent)
      try handler.listen(descriptor, slot: slot)
      TestHooks.reach(.connecting)
    } catch {
      unsafe domain.pointee.delivery.store(.none, ordering: .sequentiallyConsistent)
      _ = Uffd.unregister(descriptor, addresses)
      state.withLock { _ in
        unsafe domain.pointee.descriptor.store(-1, ordering: .sequentiallyConsistent)
        unsafe domain.pointee.spareDescriptor.store(-1, ordering: .sequentiallyConsistent)
      }
      Self.close([descriptor, spare])
      throw error
    }
    return access
  }

  func closeDescriptors() {
    // Under the lock: the watchdog must not take numbers that are being closed here for closed by somebody else.
    let open = state.withLock { _ in
      [
        unsafe domain.pointee.descriptor.exchange(-1, ordering: .sequentiallyConsistent),
        unsafe domain.pointee.spareDescriptor.exchange(-1, ordering: .sequentiallyConsistent),
      ]
    }
    Uffd.withoutForks {
      // A number that was closed may be another region's by now, and is its to close and to forget.
      for number in open where unsafe number >= 0 && domain.pointee.isOwn(number) {
        Uffd.forgetInChild(number)
        Uffd.close(number)
      }
    }
  }

  private static func close(_ descriptors: [CInt]) {
    for open in descriptors where open >= 0 {
      Uffd.forgetInChild(open)
      Uffd.close(open)
    }
  }

  /// What a userfaultfd is to report of a region.
  static func traps(_ domain: borrowing FaultDomain) -> Userfaultfd.RegisterMode {
    var traps = Userfaultfd.RegisterMode.writeProtect
    if domain.hasMinorFaults.load(ordering: .relaxed) { traps.insert(.minor) }
    // A page that is not there has something in the pool where the program locks its memory: then it traps as one that is not mapped.
    if domain.hasSource { traps.formUnion([.missing, .minor]) }
    return traps
  }

  /// Registers what went to other frames since the last time. Under the exclusive lock; false if the kernel asked to try again.
  static func registerAgain(_ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    guard domain.needsRegistration.load(ordering: .relaxed) else { return true }
    let result = Uffd.register(domain.descriptor.load(ordering: .acquiring), domain.addresses, traps(domain))
    guard try domain.settle(result, "UFFDIO_REGISTER", domain.addresses) else { return false }
    domain.needsRegistration.store(false, ordering: .relaxed)
    return true
  }

  /// Puts a new spare in the place of a descriptor that other code has closed.
  func repairDescriptors() {
    let isRepaired = Uffd.withoutForks { state.withLock { _ in unsafe repair(domain.pointee) } }
    guard isRepaired else { return }
    // A reader that went by the old number may have set another region's place in the epoll set, and left its own unset.
    for protection in handler.protections { protection.listenAgain() }
    handler.logger.error(
      "a userfaultfd of \(addresses) was closed by other code in this process; its spare took over. Find the code that closes descriptors it does not own."
    )
  }

  func listenAgain() {
    state.withLock { state in
      let descriptor = unsafe domain.pointee.descriptor.load(ordering: .acquiring)
      if let slot = state.slot, unsafe domain.pointee.isOwn(descriptor) { handler.rearm(descriptor, slot: slot) }
    }
  }

  private func repair(_ domain: borrowing FaultDomain) -> Bool {
    let descriptor = domain.descriptor.load(ordering: .acquiring)
    let spare = domain.spareDescriptor.load(ordering: .acquiring)
    guard descriptor >= 0 else { return false }
    let hasOne = domain.isOwn(descriptor)
    if hasOne, domain.isOwn(spare) { return false }
    if !hasOne {
      guard domain.useSpareDescriptor(insteadOf: descriptor) else {
        domain.fail(.descriptorClosed, errno: UffdResult.badDescriptor)
        return false
      }
    }
    let good = domain.descriptor.load(ordering: .acquiring)
    // Whoever waits for a message that was read under the old number asks again.
    if !hasOne { Uffd.wake(good, domain.addresses) }
    guard let new = try? Uffd.duplicate(good) else { return false }
    do throws(PinError) { try Uffd.closeInChild(new) } catch {
      Uffd.close(new)
      return false
    }
    domain.spareDescriptor.store(new, ordering: .sequentiallyConsistent)
    return true
  }
}
