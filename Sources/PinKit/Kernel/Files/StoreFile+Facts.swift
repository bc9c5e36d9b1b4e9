internal import CUffd
internal import SystemPackage

extension StoreFile {
  enum Kind { case regular, blockDevice, other }

  /// How a page that is in memory already is read without waiting.
  enum ReadingNow: Sendable {
    /// `RWF_NOWAIT`.
    case nowait
    /// Of a tmpfs, which has no device and does not know the flag.
    case plain
    case never
  }

  /// What fstat(2) and the device say now.
  struct State: Sendable, Equatable {
    var device: UInt64
    var inode: UInt64
    /// In bytes.
    var size: Int
    var allocated: Int
    var kind: Kind
    var isReadOnly: Bool
    /// In bytes; 0 if the kernel does not tell.
    var sector: Int
    /// What is written in one step even if the machine stops, in bytes; empty if nothing.
    var atomic: ClosedRange<Int>?
    var isTmpfs: Bool

    fileprivate init(_ info: cuffd_store_info) {
      device = info.device
      inode = info.inode
      size = Int(info.size)
      allocated = Int(info.allocated)
      kind =
        switch info.kind {
        case CInt(cuffd_store_regular): .regular
        case CInt(cuffd_store_block): .blockDevice
        default: .other
        }
      isReadOnly = info.is_read_only != 0
      sector = Int(info.sector)
      atomic = info.atomic_min > 0 && info.atomic_min <= info.atomic_max ? Int(info.atomic_min)...Int(info.atomic_max) : nil
      isTmpfs = info.is_tmpfs != 0
    }
  }

  /// Which file it is, and its size; `withAbilities` also what its file system can do.
  func state(withAbilities: Bool = false) throws(PinError) -> State {
    var info = cuffd_store_info()
    try Self.check(unsafe cuffd_store_info(descriptor, &info), "look at", name)
    // A kernel without statx(2) says nothing of abilities.
    if withAbilities { _ = unsafe cuffd_store_abilities(descriptor, &info) }
    return State(info)
  }

  /// Whether a path stands for this very file, links followed.
  func isNamed(by path: String) throws(PinError) -> Bool {
    var (device, inode): (UInt64, UInt64) = (0, 0)
    let result = unsafe path.withCString { unsafe cuffd_store_identity($0, &device, &inode) }
    if result == -Errno.noSuchFileOrDirectory.rawValue || result == -Errno.notDirectory.rawValue { return false }
    try Self.check(result, "look at", path)
    let own = try state()
    return own.device == device && own.inode == inode
  }

  func readingNow(isTmpfs: Bool) -> ReadingNow {
    var byte: UInt8 = 0
    let got = unsafe cuffd_store_read_now(descriptor, &byte, 1, 0)
    if got != -Int(Errno.notSupported.rawValue), got != -Int(Errno.invalidArgument.rawValue),
      got != -Int(Errno.noFunction.rawValue)
    {
      return .nowait
    }
    return isTmpfs ? .plain : .never
  }
}
