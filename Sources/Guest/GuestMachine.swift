internal import CKvm
public import PinKit
internal import SystemPackage

/// A virtual machine whose whole memory is a region: the kernel's own second MMU for the same pages.
///
/// Its program makes the stores it is told to. The translations it writes through are not the process's: KVM takes them from the
/// process's page table at a fault of the guest's, keeps them, and drops them when the kernel's notifiers say so.
///
/// Runs in the thread that calls ``run(_:)``. The first ``bootPages(of:)`` pages of the region are its own. Closed when it is dropped.
public struct GuestMachine: ~Copyable {
  public let region: Region
  /// How often the kernel refused to touch a page for the guest, and the machine took the fault itself.
  public private(set) var refusals = 0
  private let handle: MachineHandle

  /// Puts the program into the region's first pages, and makes the machine.
  ///
  /// - Throws: ``PinError``: `.unsupported` or `.permissionDenied` where there is no KVM for this process, `.invalidArgument` for a
  ///   region that is too small or larger than 1 GiB, and what ``Region/store(_:toByteOffset:)`` throws.
  public init(in region: Region) throws(PinError) {
    guard region.addresses.count > GuestImage.byteCount, region.addresses.count <= GuestImage.reach else {
      throw PinError(
        .invalidArgument, operation: "GuestMachine", range: region.addresses,
        advice: "A guest's memory has at least five pages, and at most 1 GiB.")
    }
    let handle = try MachineHandle()
    try GuestImage.place(in: region)
    let (start, count) = (UInt64(region.addresses.start), UInt64(region.addresses.count))
    try PinError.check(unsafe ckvm_set_memory(handle.machine, start, count), "KVM_SET_USER_MEMORY_REGION")
    try PinError.check(unsafe ckvm_set_mode(handle.machine, GuestImage.pageTable), "KVM_SET_SREGS")
    self.region = region
    self.handle = handle
  }

  /// How many of a region's pages, from the first one, a machine needs for itself.
  public static func bootPages(of region: Region) -> Int {
    (GuestImage.byteCount + region.pageSize - 1) / region.pageSize
  }

  /// Has the guest make these stores, and returns when it has made all of them.
  ///
  /// The region stays mapped meanwhile: ``Region/unmap()`` waits.
  ///
  /// - Throws: ``PinError``: `.outOfBounds` if a store lies outside the memory or in the machine's own pages; `.accessDenied` where
  ///   ``Region/protect(_:to:)`` took writing away, and ``resume()`` goes on from there; `.unmapped`; `.system`.
  public mutating func run(_ stores: GuestStores) throws(PinError) {
    let own = Self.bootPages(of: region) * region.pageSize
    guard stores.fits(own..<region.addresses.count) else {
      throw PinError(
        .outOfBounds, operation: "run \(stores)", range: region.addresses,
        advice: "Stores are aligned to 8 bytes, and the first \(own) bytes are the machine's own.")
    }
    var registers = ckvm_registers()
    registers.rax = stores.value
    registers.rcx = UInt64(stores.count)
    registers.rdx = UInt64(stores.stride)
    registers.rsi = UInt64(stores.base)
    registers.rdi = UInt64(stores.offset)
    registers.r8 = stores.window.map { UInt64($0 - 1) } ?? .max
    registers.r9 = stores.step
    registers.rip = GuestImage.programAddress
    try PinError.check(unsafe ckvm_set_registers(handle.machine, &registers), "KVM_SET_REGS")
    try resume()
  }

  /// Lets the guest go on after an error, with the store that it could not make.
  ///
  /// - Throws: As ``run(_:)``.
  public mutating func resume() throws(PinError) {
    var (stuckAt, tries) = (UInt64(0), 0)
    while let registers = try enter() {
      // The kernel does not say which page it was, but the guest is at the store that it cannot make.
      tries = registers.rcx == stuckAt ? tries + 1 : 1
      stuckAt = registers.rcx
      guard tries < 10_000 else {
        throw PinError(
          .system, operation: "KVM_RUN", range: region.addresses,
          advice: "The page at \(registers.rsi + registers.rdi) can be written by the host, but not by the guest.")
      }
      refusals += 1
      try region.touch(Int(registers.rsi + registers.rdi) / region.pageSize)
    }
  }

  /// How many stores are still to be made; 0 when ``run(_:)`` has returned.
  public var remaining: Int {
    get throws(PinError) { Int(try registers().rcx) }
  }

  /// How many translations of the guest KVM has made since the machine was; `nil` where the kernel does not tell (before Linux 5.14).
  public var translationsMade: Int? {
    let count = unsafe ckvm_statistic(handle.machine, "pf_fixed")
    return count < 0 ? nil : Int(count)
  }

  /// Runs until the stores are made, or the kernel refuses to touch a page: the registers then.
  private func enter() throws(PinError) -> ckvm_registers? {
    var (result, stop) = (CInt(0), ckvm_stop())
    try held { () in
      repeat { result = unsafe ckvm_run(handle.machine, &stop) } while result == -Errno.interrupted.rawValue
    }
    if result == -Errno.badAddress.rawValue { return try registers() }
    try PinError.check(result, "KVM_RUN")
    switch stop.exit {
    case ckvm_exit_out: return nil
    case ckvm_exit_memory:
      throw PinError(
        .outOfBounds, operation: "KVM_RUN", range: region.addresses,
        advice: "The guest touched address \(stop.address), where it has no memory.")
    default:
      throw PinError(.system, operation: "KVM_RUN", advice: "The guest stopped for KVM's reason \(stop.reason).")
    }
  }

  private func registers() throws(PinError) -> ckvm_registers {
    var registers = ckvm_registers()
    try PinError.check(unsafe ckvm_registers(handle.machine, &registers), "KVM_GET_REGS")
    return registers
  }

  /// Keeps the region mapped for as long as `body` runs.
  private func held(_ body: () -> Void) throws(PinError) {
    do { unsafe try region.withUnsafeMutableBytes { _ in body() } } catch let error as PinError { throw error } catch {
      throw PinError(.system, operation: "KVM_RUN", advice: "\(error)")
    }
  }
}

/// The machine itself, closed when the value goes.
@safe struct MachineHandle: ~Copyable {  // the pointer is this value's alone
  let machine: OpaquePointer

  init() throws(PinError) {
    var made: OpaquePointer?
    try PinError.check(unsafe ckvm_open(&made), "KVM_CREATE_VM")
    guard let made = unsafe made else { throw PinError(.system, operation: "KVM_CREATE_VM") }
    unsafe machine = made
  }

  deinit { unsafe ckvm_close(machine) }
}
