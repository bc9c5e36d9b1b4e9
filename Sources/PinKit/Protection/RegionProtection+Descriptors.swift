internal import Logging
internal import Synchronization
internal import SystemPackage

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
    let access = try Uffd.withoutForks { () throws(PinError) in try openSlices(features, delivery, slot: slot) }
    if access == .userModeOnly, !Self.hasWarned.exchange(true, ordering: .relaxed) {
      handler.logger.warning(
        "userfaultfd is open in user mode only: system calls that write into protected memory fail with EFAULT")
    }
  }

  /// It is so for the whole process, and said once.
  private static let hasWarned = Atomic<Bool>(false)

  /// Where there are no descriptors for so many, or no mappings, the region is one slice.
  private func openSlices(
    _ features: Userfaultfd.Features, _ delivery: FaultDelivery, slot: Int
  ) throws(PinError) -> Userfaultfd.Access {
    do throws(PinError) { return try open(features, delivery, slot: slot) } catch {
      // The last where users may have no more watches (`fs.epoll.max_user_watches`).
      let isShort = [.tooManyOpenFiles, .tooManyOpenFilesInSystem, .noMemory, .noSpace].contains(error.errno)
      guard isShort, unsafe domain.pointee.sliceCount > 1 else { throw error }
      unsafe domain.pointee.sliceShift.store(RegionSlices.whole, ordering: .sequentiallyConsistent)
      return try open(features, delivery, slot: slot)
    }
  }

  /// A child that was forked in between would keep descriptors that it does not know of.
  private func open(
    _ features: Userfaultfd.Features, _ delivery: FaultDelivery, slot: Int
  ) throws(PinError) -> Userfaultfd.Access {
    let count = unsafe domain.pointee.sliceCount
    var made: [(number: CInt, spare: CInt)] = []
    var access = Userfaultfd.Access.device
    var isTaken = false
    do throws(PinError) {
      for slice in 0..<count {
        let next = try openDescriptor(slice, features, &made)
        if next == .userModeOnly || slice == 0 { access = next }
      }
      // A reader that is woken by the first message looks for them, and so does who resolves a fault of its own as soon as there is a delivery.
      // Who finds the first slice's finds all.
      state.withLock { _ in
        for slice in (0..<count).reversed() {
          unsafe domain.pointee.channels[slice].take(made[slice].number, spare: made[slice].spare)
        }
      }
      isTaken = true
      TestHooks.reach(.taken)
      // Before a reader can hear of it: pages that are not mapped may trap already, and who reads of one without knowing how wakes nobody.
      unsafe domain.pointee.delivery.store(delivery, ordering: .sequentiallyConsistent)
      for slice in 0..<count {
        try handler.listen(made[slice].number, slot: slot, slice: slice)
        TestHooks.reach(.connecting)
      }
    } catch {
      unsafe domain.pointee.delivery.store(.none, ordering: .sequentiallyConsistent)
      for (slice, descriptors) in made.enumerated() {
        _ = unsafe Uffd.unregister(descriptors.number, domain.pointee.addresses(ofSlice: slice))
      }
      state.withLock { _ in for slice in 0..<count { _ = unsafe domain.pointee.channels[slice].giveUp() } }
      handler.withdraw(made.map(\.number), slot: slot, self)
      // With the last number of a userfaultfd whoever waits goes on.
      for (slice, descriptors) in made.enumerated() {
        // One that was closed meanwhile may be somebody else's by now.
        for number in [descriptors.number, descriptors.spare]
        where unsafe !isTaken || domain.pointee.channels[slice].isOwn(number) {
          Uffd.forgetInChild(number)
          Uffd.close(number)
        }
      }
      throw error
    }
    return access
  }

  private func openDescriptor(
    _ slice: Int, _ features: Userfaultfd.Features, _ made: inout [(number: CInt, spare: CInt)]
  ) throws(PinError) -> Userfaultfd.Access {
    let new = try Userfaultfd(features: features)
    unsafe try new.register(domain.pointee.addresses(ofSlice: slice), for: Self.traps(domain.pointee))
    let number = try Uffd.duplicate(new.descriptor)
    let access = new.access
    made.append((number, new.release()))
    try Uffd.closeInChild(made[slice].number)
    try Uffd.closeInChild(made[slice].spare)
    return access
  }

  func closeDescriptors() {
    // Under the lock: the watchdog must not take numbers that are being closed here for closed by somebody else.
    let open = state.withLock { _ in
      unsafe (0..<domain.pointee.sliceCount).map { unsafe ($0, domain.pointee.channels[$0].giveUp()) }
    }
    Uffd.withoutForks {
      for (slice, numbers) in open {
        // A number that was closed may be another region's by now, and is its to close and to forget.
        for number in numbers where unsafe number >= 0 && domain.pointee.channels[slice].isOwn(number) {
          Uffd.forgetInChild(number)
          Uffd.close(number)
        }
      }
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
    let result = domain.register(domain.addresses, traps(domain))
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
      guard let slot = state.slot else { return }
      for slice in unsafe 0..<domain.pointee.sliceCount {
        let descriptor = unsafe domain.pointee.channels[slice].listening
        if unsafe domain.pointee.channels[slice].isOwn(descriptor) { handler.rearm(descriptor, slot: slot, slice: slice) }
      }
    }
  }

  private func repair(_ domain: borrowing FaultDomain) -> Bool {
    var isRepaired = false
    for slice in 0..<domain.sliceCount {
      switch domain.channels[slice].repair() {
      case .whole: continue
      case .lost: domain.fail(.descriptorClosed, errno: UffdResult.badDescriptor)
      case .taken:
        // Whoever waits for a message that was read under the old number asks again.
        domain.wake(domain.addresses(ofSlice: slice))
        isRepaired = true
      case .repaired: isRepaired = true
      }
    }
    return isRepaired
  }
}
