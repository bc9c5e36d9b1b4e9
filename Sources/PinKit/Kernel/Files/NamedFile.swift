internal import CUffd
internal import Synchronization
internal import SystemPackage

/// An open file that has a name. Noncopyable: dropping the value closes the descriptor and leaves the file.
@safe struct NamedFile: ~Copyable, Sendable {
  let path: String
  let known: KnownDescriptor
  private let isLocked = Atomic<Bool>(false)
  private let forkGeneration = Kernel.forkGeneration

  private init(path: String, descriptor: CInt) {
    self.path = path
    known = KnownDescriptor(descriptor, mayFail: true)
  }

  deinit {
    // A child of fork() may have the descriptor, and with it the lock. There the lock is the parent's.
    if isLocked.load(ordering: .relaxed), forkGeneration == Kernel.forkGeneration {
      let number = known.checked
      if number >= 0 { cuffd_store_unlock(number) }
    }
    known.close()
  }

  /// The number, after a look at which file it stands for; -1 if other code has closed it.
  var descriptor: CInt { known.checked }

  /// Makes a file that its owner may read and write; `.alreadyExists` if there is something of that name.
  static func create(_ path: String) throws(PinError) -> NamedFile {
    unsafe NamedFile(path: path, descriptor: try call("create", path) { unsafe cuffd_file_create($0) })
  }

  /// Opens a file for reading; does not block at a FIFO.
  static func open(_ path: String, followingLinks: Bool = true) throws(PinError) -> NamedFile {
    unsafe NamedFile(
      path: path, descriptor: try call("open", path) { unsafe cuffd_file_open($0, followingLinks ? 1 : 0) })
  }

  struct Attributes: Sendable, Hashable {
    /// Which file it is: device and inode.
    var device: UInt64
    var inode: UInt64
    /// In bytes.
    var size: Int
    /// What it takes of the file system, in bytes; holes take nothing.
    var allocated: Int
    var isRegular: Bool

    func isSameFile(as other: Attributes) -> Bool { device == other.device && inode == other.inode }

    fileprivate init(_ info: cuffd_file_info) {
      device = info.device
      inode = info.inode
      size = Int(info.size)
      allocated = Int(info.allocated)
      isRegular = info.is_regular != 0
    }
  }

  func attributes() throws(PinError) -> Attributes {
    var info = cuffd_file_info()
    try Self.check(unsafe cuffd_file_info(descriptor, &info), "fstat", path)
    return Attributes(info)
  }

  /// What the name stands for now, `nil` for nothing. A symbolic link stands for itself.
  static func attributes(of path: String) throws(PinError) -> Attributes? {
    var info = cuffd_file_info()
    let result = unsafe path.withCString { unsafe cuffd_path_info($0, &info) }
    if result == -Errno.noSuchFileOrDirectory.rawValue { return nil }
    try check(result, "look at", path)
    return Attributes(info)
  }

  /// Locks the file for as long as it is open; `false` if another process, or another value of this one, has it locked.
  func tryLock() throws(PinError) -> Bool {
    let result = cuffd_file_lock(descriptor)
    if result == -Errno.wouldBlock.rawValue { return false }
    try Self.check(result, "lock", path)
    isLocked.store(true, ordering: .relaxed)
    return true
  }

  func setSize(_ size: Int) throws(PinError) {
    try Self.retrying("set the size to \(size) bytes of", path) { cuffd_resize(descriptor, Int64(size)) }
  }

  /// Blocks until what was written survives a power failure.
  func sync() throws(PinError) { try Self.retrying("fsync", path) { cuffd_file_sync(descriptor) } }

  /// Writes all of `bytes` from the file's byte `offset` on.
  func write(_ bytes: UnsafeRawBufferPointer, at offset: Int = 0) throws(PinError) {
    var done = 0
    while done < bytes.count {
      let put = unsafe cuffd_pwrite(descriptor, bytes.baseAddress! + done, bytes.count - done, Int64(offset + done))
      if put == -Int(Errno.interrupted.rawValue) { continue }
      done += try Self.check(put, "write", path)
      guard put > 0 else { throw PinError.outOfSpace("write \(path)") }
    }
  }

  /// Reads from the file's start on until the memory is full or the file ends; returns how many bytes that were.
  func read(into memory: UnsafeMutableRawBufferPointer) throws(PinError) -> Int {
    var done = 0
    while done < memory.count {
      let got = unsafe cuffd_pread(descriptor, memory.baseAddress! + done, memory.count - done, Int64(done))
      if got == -Int(Errno.interrupted.rawValue) { continue }
      done += try Self.check(got, "read", path)
      if got == 0 { break }
    }
    return done
  }

  /// Reads or writes some of `memory` at the file's byte `offset`; returns how many bytes, 0 at the end of the file.
  static func move(
    _ reads: Bool, _ descriptor: CInt, _ path: String, at offset: Int, _ memory: AddressRange
  ) throws(PinError) -> Int {
    let start = unsafe UnsafeMutableRawPointer(bitPattern: memory.start)!
    while true {
      let moved =
        reads
        ? unsafe cuffd_pread(descriptor, start, memory.count, Int64(offset))
        : unsafe cuffd_pwrite(descriptor, start, memory.count, Int64(offset))
      if moved != -Int(Errno.interrupted.rawValue) {
        return try check(moved, "\(reads ? "read" : "write") at \(offset)", path)
      }
    }
  }

  /// The first byte at or behind `offset` that is not known to lie in a hole; `nil` if there is none.
  func nextData(from offset: Int) -> Int? {
    let found = cuffd_file_seek(descriptor, Int64(offset), 0)
    if found == -Int64(Errno.noSuchAddressOrDevice.rawValue) { return nil }
    return found < 0 ? offset : Int(found)  // a file system that knows no holes
  }

  // MARK: Names

  /// Gives a file another name. Replaces what has that name, or throws `.alreadyExists`.
  static func rename(_ path: String, to other: String, replacing: Bool) throws(PinError) {
    func attempt(_ replaces: CInt) -> CInt {
      unsafe path.withCString { from in unsafe other.withCString { unsafe cuffd_rename(from, $0, replaces) } }
    }
    var result = attempt(replacing ? 1 : 0)
    // A file system that cannot refuse in the same step.
    if !replacing, result == -Errno.invalidArgument.rawValue {
      guard try attributes(of: other) == nil else { throw .alreadyExists(other) }
      result = attempt(1)
    }
    try check(result, "rename \(path) to", other)
  }

  /// Returns whether there was a file.
  @discardableResult
  static func remove(_ path: String) throws(PinError) -> Bool {
    let result = unsafe path.withCString { unsafe cuffd_unlink($0) }
    if result == -Errno.noSuchFileOrDirectory.rawValue { return false }
    try check(result, "remove", path)
    return true
  }

  /// Blocks until the names in the directory of `path` survive a power failure.
  static func syncDirectory(of path: String) throws(PinError) {
    let slash = path.utf8.lastIndex(of: UInt8(ascii: "/"))
    let directory = slash.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
    let descriptor = unsafe try call("open", directory) { unsafe cuffd_file_open_directory($0) }
    defer { cuffd_close(descriptor) }
    try retrying("fsync", directory) { cuffd_file_sync(descriptor) }
  }

  /// Throws unless it can be a path at all; every path that comes from outside is asked about once.
  static func check(path: String) throws(PinError) {
    guard !path.utf8.contains(0), !path.isEmpty else {
      throw PinError(.invalidArgument, operation: "use a path", advice: "The path is empty or has a zero byte.")
    }
  }

  /// The same path from the root on, so that it names the same file when the program changes its directory; as it is where the directory
  /// has no name any more.
  static func absolute(_ path: String) -> String {
    if path.hasPrefix("/") { return path }
    var buffer = [CChar](repeating: 0, count: 4096)
    let length = Int(
      unsafe buffer.withUnsafeMutableBufferPointer { unsafe cuffd_current_directory($0.baseAddress!, UInt64($0.count)) })
    guard length > 0 else { return path }
    let directory = String(decoding: buffer.prefix(length).map(UInt8.init(bitPattern:)), as: UTF8.self)
    return directory == "/" ? "/\(path)" : "\(directory)/\(path)"
  }

  // MARK: Results

  private static func call(
    _ operation: String, _ path: String, _ body: (UnsafePointer<CChar>) -> CInt
  ) throws(PinError) -> CInt {
    while true {
      let result = unsafe path.withCString(body)
      if result != -Errno.interrupted.rawValue { return CInt(try check(result, operation, path)) }
    }
  }

  private static func retrying(
    _ operation: @autoclosure () -> String, _ path: String, _ call: () -> CInt
  ) throws(PinError) {
    var result = call()
    while result == -Errno.interrupted.rawValue { result = call() }
    try check(result, operation(), path)
  }

  @discardableResult
  private static func check(
    _ result: some BinaryInteger, _ operation: @autoclosure () -> String, _ path: String
  ) throws(PinError) -> Int {
    guard result < 0 else { return Int(result) }
    throw .file(Int(result), "\(operation()) \(path)")
  }
}

extension PinError {
  /// Types what a call on a file returned: the same numbers mean other things than they do for memory.
  static func file(_ result: Int, _ operation: String) -> PinError {
    let errno = Errno(rawValue: CInt(-result))
    let (code, advice): (Code, String)
    switch errno {
    case .noSpace, .diskQuotaExceeded: (code, advice) = (.outOfSpace, spaceAdvice)
    case .fileTooLarge: (code, advice) = (.limitReached, "The file system or `ulimit -f` allows no file that large.")
    case .noSuchFileOrDirectory, .notDirectory:
      (code, advice) = (.notFound, "Check the path, and that its directory exists.")
    case .fileExists: (code, advice) = (.alreadyExists, replaceAdvice)
    case .permissionDenied, .notPermitted:
      (code, advice) = (.permissionDenied, "Check the owner and the mode of the file and its directory.")
    case .readOnlyFileSystem: (code, advice) = (.permissionDenied, "The file system is mounted read-only.")
    case .isDirectory, .fileNameTooLong, .tooManySymbolicLinkLevels:
      (code, advice) = (.invalidArgument, "Name a plain file, in fewer bytes.")
    case .badFileDescriptor: (code, advice) = (.descriptorLost, closedAdvice)
    case .ioError: (code, advice) = (.system, "The device failed; `dmesg` has its report.")
    default:
      let other = PinError.kernel(result, operation)
      (code, advice) = (other.code, other.advice)
    }
    return PinError(code, operation: operation, errno: errno, advice: advice)
  }

  static func outOfSpace(_ operation: String) -> PinError {
    PinError(.outOfSpace, operation: operation, errno: .noSpace, advice: spaceAdvice)
  }

  static func alreadyExists(_ path: String) -> PinError {
    PinError(.alreadyExists, operation: "write \(path)", advice: replaceAdvice)
  }

  private static let spaceAdvice =
    "Free space on that file system, or write to another; what was written in vain has been removed."
  private static let replaceAdvice = "Choose another path, remove the file, or ask to replace it."
}
