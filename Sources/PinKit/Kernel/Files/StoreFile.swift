internal import CUffd
internal import SystemPackage

/// The open file or block device of a ``FileStore``. Noncopyable: dropping the value gives the lock up and closes it.
@safe struct StoreFile: ~Copyable, Sendable {
  /// What errors call it.
  let name: String
  private let main: KnownDescriptor
  private var directFile: KnownDescriptor?
  /// The same file, for io_uring: a process that was killed is gone before its rings are, and they keep what they use open. The lock is not
  /// to be among it.
  private var writerFile: KnownDescriptor
  private var isLocked = false
  private let forkGeneration = Kernel.forkGeneration
  /// False in a child of fork(), which shares the file, and its lock, with its parent.
  var isOfThisProcess: Bool { forkGeneration == Kernel.forkGeneration }

  /// The number, after a look at which file it stands for; -1 if other code has closed it (K5).
  var descriptor: CInt { main.checked }
  /// For what reads in the fault path.
  var readable: CInt { main.glanced }
  /// The same file opened with `O_DIRECT`; -1 without.
  var direct: CInt { directFile?.checked ?? -1 }
  var writer: CInt { writerFile.checked }

  private init(name: String, descriptor: CInt) {
    self.name = name
    main = KnownDescriptor(descriptor, mayFail: true, isMarked: true)
    writerFile = main
  }

  deinit {
    // A child of fork() may have the descriptor, and with it the lock. There the lock is the parent's.
    if isLocked, forkGeneration == Kernel.forkGeneration {
      let number = descriptor
      if number >= 0 { cuffd_store_unlock(number) }
    }
    if !writerFile.isSameNumber(as: main) { writerFile.close() }
    directFile?.close()
    main.close()
  }

  static func open(_ path: String, writes: Bool) throws(PinError) -> StoreFile {
    let made = unsafe path.withCString { path in
      retrying { unsafe cuffd_store_open(path, writes ? 1 : 0, 0, 0) }
    }
    return StoreFile(name: path, descriptor: CInt(try check(made, "open", path)))
  }

  /// `nil` if there is something of that name.
  static func create(_ path: String) throws(PinError) -> StoreFile? {
    let made = unsafe path.withCString { unsafe cuffd_store_open($0, 1, 0, 1) }
    if made == -Errno.fileExists.rawValue { return nil }
    return StoreFile(name: path, descriptor: CInt(try check(made, "create", path)))
  }

  /// Opens what a descriptor stands for once more.
  static func reopen(_ descriptor: CInt, writes: Bool) throws(PinError) -> StoreFile {
    let name = "descriptor \(descriptor)"
    guard FileIdentity(of: descriptor) != nil else {
      throw PinError(.invalidArgument, operation: "open \(name)", errno: .badFileDescriptor, advice: "It is not open.")
    }
    let allowed = try check(cuffd_store_writes(descriptor), "look at", name) == 1
    guard allowed || !writes else {
      throw PinError(
        .readOnly, operation: "open \(name)", advice: "It was opened for reading only: ask for a read-only store.")
    }
    let made = retrying { cuffd_store_reopen(descriptor, writes ? 1 : 0, 0) }
    if made == -Errno.noSuchFileOrDirectory.rawValue { throw .withoutProc("open \(name)") }
    return StoreFile(name: name, descriptor: CInt(try check(made, "open", name)))
  }

  /// Returns 0, or why there is no direct I/O for this file, negative.
  mutating func openDirect(writes: Bool) -> CInt {
    let made = cuffd_store_reopen(descriptor, writes ? 1 : 0, 1)
    if made >= 0 { directFile = KnownDescriptor(made, mayFail: true) }
    return min(0, made)
  }

  /// Opens what writes go through. Without /proc that is the descriptor itself.
  mutating func openWriter() {
    let made = cuffd_store_reopen(descriptor, 1, 0)
    if made >= 0 { writerFile = KnownDescriptor(made, mayFail: true) }
  }

  /// `.inUse` if another store writes to it.
  mutating func lock() throws(PinError) {
    let result = Self.retrying { cuffd_store_lock(descriptor) }
    guard result != -Errno.wouldBlock.rawValue else {
      throw PinError(
        .inUse, operation: "open \(name)", errno: .wouldBlock,
        advice: "Another store, of this process or another, writes to it: close that one, or open this one read-only.")
    }
    try Self.check(result, "lock", name)
    isLocked = true
  }

  func setSize(_ size: Int) throws(PinError) {
    try Self.check(Self.retrying { cuffd_resize(descriptor, Int64(size)) }, "set the size of", name)
  }

  // MARK: Results

  static func retrying<Result: SignedInteger>(_ call: () -> Result) -> Result {
    var result = call()
    while result == -Result(Errno.interrupted.rawValue) { result = call() }
    return result
  }

  @discardableResult
  static func check(
    _ result: some BinaryInteger, _ operation: @autoclosure () -> String, _ name: String
  ) throws(PinError) -> Int {
    guard result < 0 else { return Int(result) }
    throw .store(Int(result), "\(operation()) \(name)")
  }
}

extension PinError {
  /// A file is opened once more through /proc/self/fd.
  static func withoutProc(_ operation: String) -> PinError {
    PinError(
      .unsupported, operation: operation, errno: .noSuchFileOrDirectory,
      advice:
        "It needs /proc/self/fd, and this process cannot reach /proc: open the store before the process locks itself in.")
  }

  // Of Linux only: SystemPackage has no names for them.
  private static let noDevice = Errno(rawValue: 19)
  private static let shutDown = Errno(rawValue: 108)
  private static let structureNeedsCleaning = Errno(rawValue: 117)

  /// Types what a call on the file of a store returned.
  static func store(_ result: Int, _ operation: String) -> PinError {
    let errno = Errno(rawValue: CInt(-result))
    let (code, advice): (Code, String)
    switch errno {
    case .noSpace, .diskQuotaExceeded:
      (code, advice) = (
        .outOfSpace, "Free space on its file system, or raise the quota, and try again; no page was given up."
      )
    case .ioError, .noSuchAddressOrDevice, .noData, noDevice, structureNeedsCleaning, shutDown:
      (code, advice) = (.inputOutput, "The device or its file system failed, or is gone; the kernel's log says more.")
    case .readOnlyFileSystem:
      (code, advice) = (.readOnly, "It, or its file system, may only be read: ask for a read-only store, or remount it.")
    case .staleNFSFileHandle: (code, advice) = (.fileChanged, "Its server no longer knows the file.")
    default:
      let other = PinError.file(result, operation)
      (code, advice) = (other.code, other.advice)
    }
    return PinError(code, operation: operation, errno: errno, advice: advice)
  }
}
