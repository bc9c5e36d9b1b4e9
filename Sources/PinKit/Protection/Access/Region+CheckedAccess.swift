internal import Synchronization
internal import SystemPackage

/// Accesses to adopted memory, of which other code may guard or truncate any page at any moment: the kernel makes them, and what would be a
/// signal is an error (K6). The pages were checked against the region's bounds and rights, and the access is inside it.
extension Region {
  @usableFromInline func loadChecked<Value: BitwiseCopyable>(
    _ offset: Int, _ type: Value.Type
  ) throws(PinError) -> Value {
    let (size, alignment) = (MemoryLayout<Value>.size, MemoryLayout<Value>.alignment)
    return try unsafe withUnsafeTemporaryAllocation(byteCount: max(1, size), alignment: alignment) {
      bytes throws(PinError) in
      let place = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[..<size])
      try unsafe loadChecked(offset, into: place, isProgram: false, "load")
      return unsafe bytes.loadUnaligned(as: type)
    }
  }

  func loadChecked(
    _ offset: Int, into target: UnsafeMutableRawBufferPointer, isProgram: Bool = true, _ operation: StaticString
  ) throws(PinError) {
    guard let place = target.baseAddress else { return }
    var done = 0
    var deadline: Deadline?
    while done < target.count {
      let address = addresses.start + UInt(offset + done)
      let rest = target.count - done
      let copied =
        unsafe isProgram
        ? Memory.copyChecked(address, toProgram: place + done, count: rest)
        : Memory.copyChecked(address, to: place + done, count: rest)
      if copied > 0 {
        done += copied
        deadline = nil
        continue
      }
      guard copied != Int(Memory.noBytes) || !Memory.isReadable(address) else {
        if isProgram, try unsafe Self.openTarget(UInt(bitPattern: place + done), &deadline, operation) { continue }
        throw PinError(
          .invalidArgument, operation: "\(operation)", errno: .badAddress,
          advice: "The region's bytes can be read: it is the target that cannot be written.")
      }
      throw refusal(copied, (offset + done) / pageSize, operation)
    }
  }

  @usableFromInline func storeChecked<Value: BitwiseCopyable>(_ value: Value, _ offset: Int) throws(PinError) {
    try unsafe Swift.withUnsafeBytes(of: value) { source throws(PinError) in
      try unsafe storeChecked(source, offset, "store")
    }
  }

  func storeChecked(_ source: UnsafeRawBufferPointer, _ offset: Int, _ operation: StaticString) throws(PinError) {
    guard let start = source.baseAddress else { return }
    var done = 0
    var deadline: Deadline?
    while done < source.count {
      let address = addresses.start + UInt(offset + done)
      var copied = unsafe Memory.storeChecked(start + done, to: address, count: source.count - done)
      if copied == Int(Memory.noBytes) {
        copied = unsafe Memory.storeThrough(start + done, to: address, count: source.count - done)
      }
      if copied > 0 {
        done += copied
        deadline = nil
        continue
      }
      guard unsafe copied != Int(Memory.noBytes) || Memory.isReadable(UInt(bitPattern: start + done)) else {
        throw PinError(
          .invalidArgument, operation: "\(operation)", errno: .badAddress,
          advice: "The source cannot be read at byte \(done).")
      }
      try open((offset + done) / pageSize, after: copied, &deadline, operation)
    }
  }

  /// The kernel refused to write to memory of the program's, which may be a page of a region that is protected. False if it is not, or has no
  /// bytes.
  static func openTarget(
    _ address: UInt, _ deadline: inout Deadline?, _ operation: StaticString
  ) throws(PinError) -> Bool {
    guard !Kernel.isInFaultPath, let region = ManagedRanges.region(at: address), let page = region.page(at: address) else {
      return false
    }
    do throws(PinError) { try region.open(page, after: Int(Memory.noBytes), &deadline, operation) } catch {
      if error.code == .inaccessible { return false }
      throw error
    }
    return true
  }

  /// The fault of a store, and no store: what others write meanwhile stays.
  func touchChecked(_ page: Int) throws(PinError) {
    var deadline: Deadline?
    while true {
      let result = Memory.touchChecked(addressesUnchecked(of: page..<page + 1))
      if result == 0 { return }
      try open(page, after: Int(result), &deadline, "touch")
    }
  }

  func requireBytes(_ offset: Int, _ operation: StaticString) throws(PinError) {
    guard Memory.isReadable(addresses.start + UInt(offset)) else {
      throw refusal(Int(Memory.noBytes), offset / pageSize, operation)
    }
  }

  /// The kernel refused to write a page. If that was for its protection, as it is where faults are the thread's own to take, the fault is
  /// taken here, and the access can be tried again.
  private func open(
    _ page: Int, after result: Int, _ deadline: inout Deadline?, _ operation: StaticString
  ) throws(PinError) {
    let errno = Errno(rawValue: CInt(-result))
    // What madvise(2) says of a right that is not there.
    guard errno == .badAddress || errno == .invalidArgument else { throw refusal(result, page, operation) }
    guard Memory.isReadable(addressesUnchecked(of: page..<page + 1).start) else {
      throw refusal(Int(Memory.noBytes), page, operation)
    }
    let isFirst = deadline == nil
    if isFirst { deadline = Deadline(seconds: space.configuration.patience) }
    if deadline?.isOver() == true {
      throw PinError(
        .timedOut, operation: "\(operation)", errno: errno, range: addressesUnchecked(of: page..<page + 1),
        advice: "Other code took the right to write away, memory is short, or a snapshot is at its limit.")
    }
    guard let protection = attachments.find(RegionProtection.self), !Kernel.isInFaultPath else {
      throw refusal(Int(Memory.noBytes), page, operation)
    }
    try protection.throwIfFailed("\(operation)")
    let delivery = unsafe protection.domain.pointee.delivery.load(ordering: .acquiring)
    if delivery == .none || delivery == .asynchronous {
      // The protection may have ended meanwhile.
      if isFirst { return }
      throw refusal(Int(Memory.noBytes), page, operation)
    }
    switch protection.translate(page, forWriting: true) {
    case .denied:
      throw PinError(
        .accessDenied, operation: "\(operation)", range: addressesUnchecked(of: page..<page + 1),
        advice: "protect(_:to:) took that right away from page \(page).")
    case .notNow: Kernel.pause(nanoseconds: 20_000)
    case .found, .needsDirectMap: break
    }
  }

  private func refusal(_ result: Int, _ page: Int, _ operation: StaticString) -> PinError {
    let range = addressesUnchecked(of: page..<page + 1)
    guard result == Int(Memory.noBytes) || result == 0 else { return .kernel(result, "\(operation)", range) }
    return PinError(
      .inaccessible, operation: "\(operation)", errno: .badAddress, range: range,
      advice:
        "Page \(page) is a guard page, lies behind the end of its file, or has lost its mapping or its rights: the region was adopted, and other code did that."
    )
  }
}
