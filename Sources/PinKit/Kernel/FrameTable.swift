internal import CUffd

/// `/proc/kpagecount` or `/proc/kpageflags`: 64 bits for each page frame of the machine.
struct FrameTable: ~Copyable {
  private let file: KnownDescriptor

  init(_ path: String) throws(PinError) {
    file = .raised(try PinError.opened(unsafe path.withCString { unsafe cuffd_open_file($0, 0) }, path))
  }

  deinit { file.close() }

  func value(of frame: UInt64) -> UInt64? {
    var value: UInt64 = 0
    let descriptor = file.checked
    let got = unsafe withUnsafeMutableBytes(of: &value) {
      unsafe cuffd_pread(descriptor, $0.baseAddress!, 8, Int64(frame) * 8)
    }
    return got == 8 ? value : nil
  }
}

/// The bits of an entry of `/proc/PID/pagemap`.
enum PagemapEntry {
  static let present: UInt64 = 1 << 63
  static let swapped: UInt64 = 1 << 62
  static let file: UInt64 = 1 << 61
  static let writeProtected: UInt64 = 1 << 57
  static let exclusive: UInt64 = 1 << 56
  /// Of a page that is not present: `MADV_GUARD_INSTALL` (Linux 6.15).
  static let guarded: UInt64 = 1 << 58
  /// 0 without CAP_SYS_ADMIN.
  static let frame: UInt64 = (1 << 55) - 1

  /// A marker (a write-protected absent page, a guard) looks like an entry of the last type of swap entries there is; pages that are under
  /// migration have types of their own below it, and swap devices those below these.
  static func isMarker(_ entry: UInt64) -> Bool { entry & 31 == 31 }

  /// Where the bytes of a page are.
  enum Residence: Equatable {
    /// It has none: nobody has written it, or it is a guard.
    case nowhere
    case inMemory
    /// In a swap device, in the memory of a device, or on their way from one frame to another (migration).
    case away
    /// Away, or nowhere: who opened the file may not see which.
    case hidden
  }

  static func residence(_ entry: UInt64) -> Residence {
    if entry & present != 0 { return .inMemory }
    if entry & swapped == 0 || entry & guarded != 0 { return .nowhere }
    if entry & frame == 0 { return .hidden }
    return isMarker(entry) ? .nowhere : .away
  }
}

/// The bits of `/proc/kpageflags`; `KPF_…` in `linux/kernel-page-flags.h`.
enum FrameFlags {
  private static let dirty: UInt64 = 1 << 4
  private static let writeback: UInt64 = 1 << 8
  private static let hugetlb: UInt64 = 1 << 17
  private static let merged: UInt64 = 1 << 21
  private static let zero: UInt64 = 1 << 24

  static func state(_ bits: UInt64) -> ObservedPages.State {
    var state: ObservedPages.State = []
    if bits & dirty != 0 { state.insert(.dirty) }
    if bits & writeback != 0 { state.insert(.writeback) }
    if bits & hugetlb != 0 { state.insert(.huge) }
    if bits & merged != 0 { state.insert(.merged) }
    if bits & zero != 0 { state.insert(.zero) }
    return state
  }
}
