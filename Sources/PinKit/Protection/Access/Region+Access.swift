internal import Synchronization

extension Region {
  /// Calls `body` with the region's bytes. The pointer is valid until `body` returns; ``unmap(whilePinned:)`` waits for it.
  ///
  /// Takes no lock and makes no system call; faults inside `body` are served.
  ///
  /// - Throws: ``PinError`` `.unmapped` or `.notInherited` before `body` runs; what `body` throws.
  public func withUnsafeMutableBytes<Result>(
    _ body: (UnsafeMutableRawBufferPointer) throws -> Result
  ) throws -> Result {
    try enter("withUnsafeMutableBytes")
    defer { leave() }
    return try unsafe body(bytes)
  }

  /// Loads a value of a trivial type at a byte offset, which need not be aligned.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.unmapped`, `.accessDenied` where ``protect(_:to:)`` took reading away;
  ///   of a page over a store what the store says; of a sealed page `.sealed`, `.tampered` or `.keyGone`; of a page of adopted memory that has
  ///   no bytes `.inaccessible` (K6). A page that is sealed or reclaimed again in the very moment of the access ends in SIGBUS, as through a
  ///   pointer: pin what must not be.
  @inlinable public func load<Value: BitwiseCopyable>(
    fromByteOffset offset: Int, as type: Value.Type = Value.self
  ) throws(PinError) -> Value {
    let access = try beginAccess(offset, MemoryLayout<Value>.size, isStore: false)
    defer { endAccess(access) }
    guard let place = unsafe UnsafeRawPointer(bitPattern: access.address) else { return try loadChecked(offset, type) }
    return unsafe place.loadUnaligned(as: type)
  }

  /// Stores a value of a trivial type at a byte offset, which need not be aligned.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.unmapped`, `.accessDenied` where ``protect(_:to:)`` took writing away; of a page of adopted
  ///   memory that has no bytes `.inaccessible` (K6).
  @inlinable public func store<Value: BitwiseCopyable>(_ value: Value, toByteOffset offset: Int) throws(PinError) {
    let access = try beginAccess(offset, MemoryLayout<Value>.size, isStore: true)
    defer { endAccess(access) }
    guard let place = unsafe UnsafeMutableRawPointer(bitPattern: access.address) else {
      return try storeChecked(value, offset)
    }
    unsafe place.storeBytes(of: value, as: Value.self)
  }

  /// An access to bytes whose bounds and rights were checked.
  @usableFromInline struct CheckedAccess {
    /// Of the first; 0 where the kernel has to make the access.
    @usableFromInline let address: UInt
    fileprivate let check: Check
  }

  /// Begins ``load(fromByteOffset:as:)`` or ``store(_:toByteOffset:)``: what is the same for values of every type, and so is not compiled again
  /// with each.
  @usableFromInline func beginAccess(_ offset: Int, _ count: Int, isStore: Bool) throws(PinError) -> CheckedAccess {
    let operation: StaticString = isStore ? "store" : "load"
    let check = try beginChecked(operation)
    do throws(PinError) {
      try checkBytes(offset, count, denied: isStore ? .denied : .readDenied, operation)
    } catch {
      endChecked(check)
      throw error
    }
    return CheckedAccess(address: isAdopted ? 0 : addresses.start + UInt(offset), check: check)
  }

  @usableFromInline func endAccess(_ access: CheckedAccess) { endChecked(access.check) }

  /// Copies bytes into the region.
  ///
  /// - Throws: As ``store(_:toByteOffset:)``; nothing is copied then, but of `.inaccessible` what lies before the page.
  public func copy(_ source: UnsafeRawBufferPointer, toByteOffset offset: Int) throws(PinError) {
    let check = try beginChecked("copy")
    defer { endChecked(check) }
    try checkBytes(offset, source.count, denied: .denied, "copy")
    if isAdopted { return try unsafe storeChecked(source, offset, "copy") }
    unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + source.count]).copyMemory(from: source)
  }

  /// Copies bytes out of the region until `target` is full.
  ///
  /// - Throws: As ``load(fromByteOffset:as:)``; nothing is copied then, but of `.inaccessible` what lies before the page.
  public func copy(fromByteOffset offset: Int, into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    let check = try beginChecked("copy")
    defer { endChecked(check) }
    try checkBytes(offset, target.count, denied: .readDenied, "copy")
    if isAdopted { return try unsafe loadChecked(offset, into: target, "copy") }
    unsafe target.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + target.count]))
  }

  /// Takes the fault that a store to `page` would take, and changes nothing: when it returns, the page could be written.
  ///
  /// For whoever writes the memory by other ways than this process's page table, and was refused because the page was protected: a
  /// system call that failed with `EFAULT`, or a guest whose `KVM_RUN` did. Sharing is broken and the write recorded first, and only then
  /// is the page handed out (N1). A page may be protected again at any time, by a collection, so the other way must be tried in a
  /// loop. Trackers report the page as written.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.unmapped`, `.accessDenied` where ``protect(_:to:)`` took writing away; of a page of adopted
  ///   memory that has no bytes `.inaccessible` (K6).
  public func touch(_ page: Int) throws(PinError) {
    let check = try beginChecked("touch")
    defer { endChecked(check) }
    let (offset, isTooLarge) = page.multipliedReportingOverflow(by: pageSize)
    try checkBytes(isTooLarge ? -1 : offset, 1, denied: [.writeDenied, .readDenied], "touch")
    if isAdopted { return try touchChecked(page) }
    Memory.touch(addresses.start + UInt(offset))
  }

  // MARK: Words that two sides agree by

  /// Loads the index of a ring that two threads share: what the other wrote before it called ``storeReleasing(_:toByteOffset:)`` is
  /// seen by every access after this one.
  ///
  /// Other than ``load(fromByteOffset:as:)`` it never sees half of a store.
  ///
  /// The word is accessed in place, after it was found that its page has bytes: a page of adopted memory that other code takes away in that
  /// very moment ends in a signal, as through a pointer.
  ///
  /// - Parameter offset: In bytes, even.
  /// - Throws: As ``load(fromByteOffset:as:)``; `.invalidArgument` for an odd offset.
  public func loadAcquiring(fromByteOffset offset: Int) throws(PinError) -> UInt16 {
    let check = try beginChecked("load")
    defer { endChecked(check) }
    try checkBytes(offset, 2, denied: .readDenied, "load")
    if isAdopted { try requireBytes(offset, "load") }
    return unsafe try word(at: offset, "load").pointee.load(ordering: .acquiring)
  }

  /// Stores the index of a ring that two threads share, after everything that this thread wrote before.
  ///
  /// - Parameters:
  ///   - value: How far the ring is.
  ///   - offset: In bytes, even.
  /// - Throws: As ``store(_:toByteOffset:)``; `.invalidArgument` for an odd offset.
  public func storeReleasing(_ value: UInt16, toByteOffset offset: Int) throws(PinError) {
    let check = try beginChecked("store")
    defer { endChecked(check) }
    try checkBytes(offset, 2, denied: [.writeDenied, .readDenied], "store")
    if isAdopted { try requireBytes(offset, "store") }
    unsafe try word(at: offset, "store").pointee.store(value, ordering: .releasing)
  }

  /// Of bytes that were checked.
  private func word(at offset: Int, _ operation: StaticString) throws(PinError) -> UnsafeMutablePointer<Atomic<UInt16>> {
    guard offset.isMultiple(of: 2) else {
      throw PinError(
        .invalidArgument, operation: "\(operation) of a word at offset \(offset)", range: addresses,
        advice: "A word that two threads share lies at an even offset.")
    }
    return unsafe (bytes.baseAddress! + offset).assumingMemoryBound(to: Atomic<UInt16>.self)
  }

  // MARK: The gate

  private var bytes: UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: addresses.start), count: addresses.count)
  }

  @inline(__always) func enter(_ operation: StaticString) throws(PinError) {
    guard isOfThisProcess else { throw .notInherited("\(operation)") }
    if Kernel.isInCallback {
      LockOrder.mayBlock(operation)
      throw PinError(
        .wouldDeadlock, operation: "\(operation)", range: addresses,
        advice: "The call was made from a subscriber's callback, which the change waits for.")
    }
    try requireOutsideMirrors("\(operation)")
    guard gate.enter() else { throw PinError(.unmapped, operation: "\(operation)", range: addresses) }
  }

  @inline(__always) func leave() { gate.leave() }

  /// How ``endChecked(_:)`` ends what ``beginChecked(_:)`` began.
  fileprivate enum Check {
    /// It is noted in memory of the thread's own.
    case noted
    /// It holds the lock.
    case locked
    /// A first-write callback does not take the lock: it runs under the wrprotect lock, which keeps ``protect(_:to:)`` out as well.
    case inFaultPath
  }

  @inline(__always) private func beginChecked(_ operation: StaticString) throws(PinError) -> Check {
    if isOfThisProcess, Kernel.isOutsideAll, gate.enterChecked() { return .noted }
    return try beginLocked(operation)
  }

  private func beginLocked(_ operation: StaticString) throws(PinError) -> Check {
    try enter(operation)
    if Kernel.isInFaultPath { return .inFaultPath }
    _ = checkedAccesses.lockShared()
    return .locked
  }

  @inline(__always) private func endChecked(_ check: Check) {
    if check == .noted { return gate.leaveChecked() }
    if check == .locked { checkedAccesses.unlockShared() }
    leave()
  }

  /// Runs `body` while ``protect(_:to:)`` takes no right away. The thread is inside.
  func withRights<Result>(_ body: () throws(PinError) -> Result) throws(PinError) -> Result {
    if gate.enterChecked() {
      defer { gate.leaveChecked() }
      return try body()
    }
    _ = checkedAccesses.lockShared()
    defer { checkedAccesses.unlockShared() }
    return try body()
  }

  /// Runs `body` while nobody is inside an access that checks rights.
  ///
  /// An access may last: its page is held for a snapshot that has no room, until somebody reads of the snapshot. So whoever comes meanwhile is
  /// let in again and again.
  func withRightsChanging<Result>(_ body: () throws(PinError) -> Result) throws(PinError) -> Result {
    while true {
      _ = checkedAccesses.lockExclusive()
      if gate.beginChange(patience: 10_000_000) { break }
      checkedAccesses.unlockExclusive()
      Kernel.pause(nanoseconds: 1_000_000)
    }
    defer {
      gate.endChange()
      checkedAccesses.unlockExclusive()
    }
    return try body()
  }

  /// The same, if nobody has to be waited for.
  func withRightsChangingIfFree<Result>(_ body: () throws(PinError) -> Result) throws(PinError) -> Result? {
    guard checkedAccesses.tryLockExclusive() else { return nil }
    defer { checkedAccesses.unlockExclusive() }
    guard gate.beginChange(patience: 0) else { return nil }
    defer { gate.endChange() }
    return try body()
  }

  /// Brings pages of a store in, so that what the store says is thrown here and not a signal in the access. In a fault callback the fault
  /// would have to be served by the thread itself.
  private func prepare(_ pages: Range<Int>, _ denied: PageTable.Entry) throws(PinError) {
    if Kernel.isInFaultPath { return }
    try seals?.makeAccessible(pages, insists: false)
    let isWrite = denied.contains(.writeDenied)
    guard let supply else { return }
    try supply.prepare(pages, toWrite: isWrite)
  }

  @inline(__always) private func checkBytes(
    _ offset: Int, _ count: Int, denied: PageTable.Entry, _ operation: StaticString
  ) throws(PinError) {
    guard offset >= 0, count >= 0, offset <= addresses.count, count <= addresses.count - offset else {
      throw PinError(
        .outOfBounds, operation: "\(operation) of \(count) bytes at offset \(offset)", range: addresses,
        advice: "The region has \(addresses.count) bytes.")
    }
    guard count > 0 else { return }
    if isStored || hasSeals.load(ordering: .relaxed) {
      try prepare(offset / pageSize..<(offset + count - 1) / pageSize + 1, denied)
    }
    guard table.hasDeniedPages else { return }
    for page in offset / pageSize...(offset + count - 1) / pageSize where !table[page].isDisjoint(with: denied) {
      throw PinError(
        .accessDenied, operation: "\(operation)", range: addressesUnchecked(of: page..<page + 1),
        advice: "protect(_:to:) took that right away from page \(page).")
    }
  }
}
