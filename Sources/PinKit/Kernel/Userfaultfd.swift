internal import CUffd
internal import SystemPackage

/// A userfaultfd: one descriptor through which the kernel hands page faults of registered ranges to this process.
///
/// The kernel's description is `Documentation/admin-guide/mm/userfaultfd.rst`; the calls are userfaultfd(2) and ioctl_userfaultfd(2).
/// Noncopyable: dropping the value closes the descriptor. Ranges that are still registered then lose their protection without a
/// word, so unregister them first.
@safe public struct Userfaultfd: ~Copyable, Sendable {
  /// The descriptor's number.
  public let descriptor: CInt
  /// The features that were asked for and granted.
  public let features: Features
  /// How it was opened.
  public let access: Access

  /// Opens a descriptor and negotiates features.
  ///
  /// - Parameters:
  ///   - features: What the kernel must offer; one that it does not know makes the call fail.
  ///   - access: The ways to try, in order.
  /// - Throws: ``PinError`` naming every way that was tried with its errno, or the missing features. Does not block.
  public init(features: Features, access: [Access] = [.device, .systemCall, .userModeOnly]) throws(PinError) {
    var refusals: [String] = []
    var last = Errno.notPermitted
    for way in access {
      let result = cuffd_open(way.rawValue)
      if result < 0 {
        last = Errno(rawValue: -result)
        refusals.append("\(way.name): \(last)")
        continue
      }
      var granted: UInt64 = 0
      var ioctls: UInt64 = 0
      let handshake = unsafe cuffd_api(result, features.rawValue, &granted, &ioctls)
      if handshake < 0 {
        cuffd_close(result)
        throw .kernel(
          Int(handshake), "UFFDIO_API(\(features))",
          advice: handshake == -Errno.notPermitted.rawValue
            ? "EVENT_FORK needs CAP_SYS_PTRACE, however the descriptor was opened."
            : "This kernel lacks one of the features; `pinctl doctor` lists those it has.")
      }
      self.descriptor = result
      self.features = features
      self.access = way
      return
    }
    let tried = "Tried \(refusals.joined(separator: "; "))."
    if last == .tooManyOpenFiles || last == .tooManyOpenFilesInSystem {
      throw .kernel(
        Int(-last.rawValue), "userfaultfd", advice: "\(tried) Raise the limit on open files (`ulimit -n`, `fs.file-max`).")
    }
    throw PinError(
      last == .noFunction ? .unsupported : .permissionDenied, operation: "userfaultfd", errno: last,
      advice: "\(tried) Give the user access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1; "
        + "`.mprotect` tracking works without.")
  }

  /// Gives the descriptor away, open.
  consuming func release() -> CInt {
    let descriptor = descriptor
    discard self
    return descriptor
  }

  deinit { cuffd_close(descriptor) }
}

extension Userfaultfd {
  /// How a descriptor was opened.
  public enum Access: CInt, Sendable, Hashable, Codable, CaseIterable {
    /// `USERFAULTFD_IOC_NEW` on `/dev/userfaultfd`: governed by the file's permissions.
    case device = 0
    /// userfaultfd(2): needs `CAP_SYS_PTRACE` or `vm.unprivileged_userfaultfd=1`.
    case systemCall = 1
    /// userfaultfd(2) with `UFFD_USER_MODE_ONLY`: faults of system calls are not delivered, they fail with `EFAULT`.
    case userModeOnly = 2

    var name: String {
      switch self {
      case .device: "/dev/userfaultfd"
      case .systemCall: "userfaultfd(2)"
      case .userModeOnly: "userfaultfd(2) with UFFD_USER_MODE_ONLY"
      }
    }
  }

  /// Feature bits of `UFFDIO_API`. The corresponding C constants are `UFFD_FEATURE_…`.
  public struct Features: OptionSet, Sendable, Hashable, Codable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let pagefaultFlagWP = Features(rawValue: cuffd_feature_pagefault_flag_wp)
    public static let eventFork = Features(rawValue: cuffd_feature_event_fork)
    public static let eventRemap = Features(rawValue: cuffd_feature_event_remap)
    public static let eventRemove = Features(rawValue: cuffd_feature_event_remove)
    public static let missingHugetlbfs = Features(rawValue: cuffd_feature_missing_hugetlbfs)
    public static let missingShmem = Features(rawValue: cuffd_feature_missing_shmem)
    public static let eventUnmap = Features(rawValue: cuffd_feature_event_unmap)
    public static let sigbus = Features(rawValue: cuffd_feature_sigbus)
    public static let threadID = Features(rawValue: cuffd_feature_thread_id)
    public static let minorHugetlbfs = Features(rawValue: cuffd_feature_minor_hugetlbfs)
    public static let minorShmem = Features(rawValue: cuffd_feature_minor_shmem)
    public static let exactAddress = Features(rawValue: cuffd_feature_exact_address)
    public static let wpHugetlbfsShmem = Features(rawValue: cuffd_feature_wp_hugetlbfs_shmem)
    public static let wpUnpopulated = Features(rawValue: cuffd_feature_wp_unpopulated)
    public static let poison = Features(rawValue: cuffd_feature_poison)
    public static let wpAsync = Features(rawValue: cuffd_feature_wp_async)
    public static let move = Features(rawValue: cuffd_feature_move)

    /// Every known bit with the kernel's name.
    public static let names: [(Features, String)] = [
      (.pagefaultFlagWP, "PAGEFAULT_FLAG_WP"), (.eventFork, "EVENT_FORK"), (.eventRemap, "EVENT_REMAP"),
      (.eventRemove, "EVENT_REMOVE"), (.missingHugetlbfs, "MISSING_HUGETLBFS"), (.missingShmem, "MISSING_SHMEM"),
      (.eventUnmap, "EVENT_UNMAP"), (.sigbus, "SIGBUS"), (.threadID, "THREAD_ID"),
      (.minorHugetlbfs, "MINOR_HUGETLBFS"), (.minorShmem, "MINOR_SHMEM"), (.exactAddress, "EXACT_ADDRESS"),
      (.wpHugetlbfsShmem, "WP_HUGETLBFS_SHMEM"), (.wpUnpopulated, "WP_UNPOPULATED"), (.poison, "POISON"),
      (.wpAsync, "WP_ASYNC"), (.move, "MOVE"),
    ]

    public var description: String {
      Features.names.filter { contains($0.0) }.map(\.1).joined(separator: " ")
    }
  }

  /// What faults of a range are delivered. The corresponding C constants are `UFFDIO_REGISTER_MODE_…`.
  public struct RegisterMode: OptionSet, Sendable, Hashable, Codable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static let missing = RegisterMode(rawValue: cuffd_register_missing)
    public static let writeProtect = RegisterMode(rawValue: cuffd_register_wp)
    public static let minor = RegisterMode(rawValue: cuffd_register_minor)
  }

  /// Every feature bit that the running kernel offers.
  ///
  /// - Throws: ``PinError`` if no descriptor can be had.
  public static func availableFeatures() throws(PinError) -> Features {
    let probe = try Userfaultfd(features: [])
    _ = probe
    // A handshake with no features reports all that the kernel has; the first one of a descriptor is final, so ask anew.
    let descriptor = cuffd_open(probe.access.rawValue)
    try PinError.check(descriptor, "userfaultfd")
    defer { cuffd_close(descriptor) }
    var granted: UInt64 = 0
    var ioctls: UInt64 = 0
    try PinError.check(unsafe cuffd_api(descriptor, 0, &granted, &ioctls), "UFFDIO_API")
    return Features(rawValue: granted)
  }
}
