internal import PinKit
internal import SystemPackage

extension GuestMachine {
  /// Why KVM runs no guest here; `nil` if it does. Tried once, with a guest.
  ///
  /// What PinKit refuses is no such reason: who needs a guest has to find that out.
  public static let unavailable: String? = {
    do throws(PinError) {
      let space = try AddressSpace()
      let region = try space.map(.anonymous(hugePages: .never), pages: 8)
      var machine = try GuestMachine(in: region)
      try machine.run(GuestStores(7, to: 5..<6, pageSize: region.pageSize))
      return nil
    } catch {
      return error.operation.hasPrefix("KVM_") ? error.description : nil
    }
  }()
}

extension PinError {
  /// Throws if a function of the shim failed.
  static func check(_ result: CInt, _ operation: String) throws(PinError) {
    guard result < 0 else { return }
    let errno = Errno(rawValue: -result)
    let (code, advice): (Code, String) =
      switch errno {
      case .noSuchFileOrDirectory, .noSuchAddressOrDevice, .operationNotSupportedByDevice:
        (.unsupported, "There is no /dev/kvm: load kvm_intel or kvm_amd, or give the container the device.")
      case .permissionDenied, .notPermitted:
        (.permissionDenied, "/dev/kvm is there, but not for this user: join the group that owns it.")
      case .notSupportedOnSocket, .notSupported, .inappropriateIOCTLForDevice:
        (.unsupported, "This kernel or processor does not do it.")
      case .resourceBusy: (.inUse, "Another hypervisor has the processor's extensions.")
      case .noMemory: (.outOfMemory, "")
      default: (.system, "")
      }
    throw PinError(code, operation: operation, errno: errno, advice: advice)
  }
}
