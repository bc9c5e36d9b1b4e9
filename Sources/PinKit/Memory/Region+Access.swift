extension Region {
  /// Calls `body` with the region's bytes. The pointer is valid until `body` returns; ``unmap()`` waits for it.
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
  /// - Throws: ``PinError``: `.outOfBounds`, `.unmapped`, `.accessDenied` where ``protect(_:to:)`` took reading away.
  public func load<Value: BitwiseCopyable>(
    fromByteOffset offset: Int, as type: Value.Type = Value.self
  ) throws(PinError) -> Value {
    try beginChecked("load")
    defer { endChecked() }
    try check(offset, MemoryLayout<Value>.size, denied: .readDenied, "load")
    return unsafe bytes.loadUnaligned(fromByteOffset: offset, as: type)
  }

  /// Stores a value of a trivial type at a byte offset, which need not be aligned.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.unmapped`, `.accessDenied` where ``protect(_:to:)`` took writing away.
  public func store<Value: BitwiseCopyable>(_ value: Value, toByteOffset offset: Int) throws(PinError) {
    try beginChecked("store")
    defer { endChecked() }
    try check(offset, MemoryLayout<Value>.size, denied: [.writeDenied, .readDenied], "store")
    unsafe bytes.storeBytes(of: value, toByteOffset: offset, as: Value.self)
  }

  /// Copies bytes into the region.
  ///
  /// - Throws: As ``store(_:toByteOffset:)``; nothing is copied then.
  public func copy(_ source: UnsafeRawBufferPointer, toByteOffset offset: Int) throws(PinError) {
    try beginChecked("copy")
    defer { endChecked() }
    try check(offset, source.count, denied: [.writeDenied, .readDenied], "copy")
    unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + source.count]).copyMemory(from: source)
  }

  /// Copies bytes out of the region until `target` is full.
  ///
  /// - Throws: As ``load(fromByteOffset:as:)``; nothing is copied then.
  public func copy(fromByteOffset offset: Int, into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    try beginChecked("copy")
    defer { endChecked() }
    try check(offset, target.count, denied: .readDenied, "copy")
    unsafe target.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + target.count]))
  }

  // MARK: The gate

  private var bytes: UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: addresses.start), count: addresses.count)
  }

  @inline(__always) func enter(_ operation: StaticString) throws(PinError) {
    guard space.isOfThisProcess else { throw .notInherited("\(operation)") }
    if Kernel.isInCallback {
      throw PinError(
        .wouldDeadlock, operation: "\(operation)", range: addresses,
        advice: "The call was made from a subscriber's callback, which the change waits for.")
    }
    try requireOutsideMirrors("\(operation)")
    guard gate.enter() else { throw PinError(.unmapped, operation: "\(operation)", range: addresses) }
    Kernel.enterAccess(id)
  }

  @inline(__always) func leave() {
    Kernel.leaveAccess(id)
    gate.leave()
  }

  /// A first-write callback does not take the lock: it runs under the wrprotect lock, which keeps ``protect(_:to:)`` out as well.
  @inline(__always) private func beginChecked(_ operation: StaticString) throws(PinError) {
    try enter(operation)
    if !Kernel.isInFaultPath { _ = checkedAccesses.lockShared() }
  }

  @inline(__always) private func endChecked() {
    if !Kernel.isInFaultPath { checkedAccesses.unlockShared() }
    leave()
  }

  private func check(
    _ offset: Int, _ count: Int, denied: PageTable.Entry, _ operation: StaticString
  ) throws(PinError) {
    guard offset >= 0, count >= 0, offset <= addresses.count, count <= addresses.count - offset else {
      throw PinError(
        .outOfBounds, operation: "\(operation) of \(count) bytes at offset \(offset)", range: addresses,
        advice: "The region has \(addresses.count) bytes.")
    }
    guard count > 0, table.hasDeniedPages else { return }
    for page in offset / pageSize...(offset + count - 1) / pageSize where !table[page].isDisjoint(with: denied) {
      throw PinError(
        .accessDenied, operation: "\(operation)", range: addressesUnchecked(of: page..<page + 1),
        advice: "protect(_:to:) took that right away from page \(page).")
    }
  }
}
