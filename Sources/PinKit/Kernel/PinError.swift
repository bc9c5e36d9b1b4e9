public import SystemPackage

/// The one error that PinKit throws: what was tried, on which addresses, what the kernel said, and what to do about it.
public struct PinError: Error, Sendable, Hashable, CustomStringConvertible {
  /// What kind of failure it is; programs switch on this.
  public struct Code: Sendable, Hashable, CustomStringConvertible {
    public let description: String
    private init(_ description: String) { self.description = description }

    /// The arguments make no sense: a count below one, an empty range, a misaligned address.
    public static let invalidArgument = Code("invalid argument")
    /// A page or byte offset lies outside the region.
    public static let outOfBounds = Code("out of bounds")
    /// The backing, the mechanism or this kernel cannot do what was asked.
    public static let unsupported = Code("not supported")
    /// The kernel or its configuration forbids it to this process.
    public static let permissionDenied = Code("permission denied")
    /// The region was unmapped, or its address space closed.
    public static let unmapped = Code("region is unmapped")
    /// The tracker was stopped.
    public static let stopped = Code("tracker is stopped")
    /// Something else holds what this call needs.
    public static let inUse = Code("in use")
    /// The call would wait for its own thread.
    public static let wouldDeadlock = Code("would deadlock")
    /// The pages may not be read or written: `protect(_:to:)` took the right away.
    public static let accessDenied = Code("access denied")
    /// A page of adopted memory has no bytes that could be read or written: it is a guard page, it lies behind the end of its file, or other
    /// code took its mapping or its rights away.
    public static let inaccessible = Code("page is inaccessible")
    /// A limit of the process or the machine is reached.
    public static let limitReached = Code("limit reached")
    /// There is no memory.
    public static let outOfMemory = Code("out of memory")
    /// There is no space left in the file, file system or pool.
    public static let outOfSpace = Code("out of space")
    /// The fault handler or its descriptor is gone; what it protected can no longer be vouched for.
    public static let handlerLost = Code("fault handler lost")
    /// The memory was unmapped, moved or mapped over behind PinKit's back.
    public static let mappingChanged = Code("mapping changed behind PinKit's back")
    /// The kernel kept asking to try again until the deadline passed.
    public static let timedOut = Code("timed out")
    /// The process is a child of `fork()`, and managed memory was not inherited.
    public static let notInherited = Code("not inherited across fork")
    /// The snapshot was given up: bytes that it needed could not be kept. The error's advice says why.
    public static let snapshotLost = Code("snapshot was given up")
    /// The snapshot was closed.
    public static let closed = Code("snapshot is closed")
    /// These pages of the snapshot were released after they had been copied out.
    public static let released = Code("pages were released")
    /// There is no such file, or no image at that path.
    public static let notFound = Code("not found")
    /// There is a file of that name already, and replacing it was not asked for.
    public static let alreadyExists = Code("already exists")
    /// The caller's own closure called it off.
    public static let cancelled = Code("cancelled")
    /// The bytes of an image, or of its header, are not those that were written.
    public static let corruptImage = Code("image is corrupt")
    /// The images were not made one on top of the other in this order.
    public static let brokenChain = Code("images do not form a chain")
    /// The page size or the number of pages differs.
    public static let geometryMismatch = Code("geometry does not match")
    /// It had to be done inside a callback that is over.
    public static let tooLate = Code("too late")
    /// A subscriber to the pages failed when it was told of the change. The error's advice says how.
    public static let subscriberFailed = Code("subscriber failed")
    /// Somebody has pinned a page, or may have: unpin it first, or wait.
    public static let pinned = Code("pinned")
    /// It cannot be done without waiting, and waiting was not allowed.
    public static let wouldBlock = Code("would block")
    /// The file must be told before its pages are written, which a long-term pin for writing would go around (P1).
    public static let needsDirtyTracking = Code("file needs dirty tracking")
    /// A store, a file system or a device could not read or write.
    public static let inputOutput = Code("input/output error")
    /// The file under a region was truncated or replaced by another one.
    public static let fileChanged = Code("file changed behind PinKit's back")
    /// The store, or the file, may only be read.
    public static let readOnly = Code("read-only")
    /// The page is in use by somebody who needs it as it is: nothing has changed.
    public static let busy = Code("busy")
    /// The page is sealed: its bytes are not to be had as it is.
    public static let sealed = Code("sealed")
    /// The bytes of a sealed page, or what is kept beside it, are not those that it was sealed with: it never opens.
    public static let tampered = Code("tampered with")
    /// The key was wiped: nothing can be sealed or opened with it any more.
    public static let keyGone = Code("key is gone")
    /// Other code in this process closed a descriptor of PinKit's: of a store, of an image, of an io_uring.
    public static let descriptorLost = Code("descriptor was closed by other code")
    /// Any other refusal of the kernel; see ``PinError/errno``.
    public static let system = Code("system error")
  }

  public let code: Code
  /// What the kernel said, where it was the kernel.
  public let errno: Errno?
  /// What was tried, in words or as the name of the call: `UFFDIO_REGISTER`.
  public let operation: String
  /// The bytes it was tried on.
  public let range: AddressRange?
  /// What the reader of the message can do about it.
  public let advice: String

  public init(
    _ code: Code, operation: String, errno: Errno? = nil, range: AddressRange? = nil, advice: String = ""
  ) {
    self.code = code
    self.errno = errno
    self.operation = operation
    self.range = range
    self.advice = advice
  }

  public var description: String {
    var text = "\(operation): \(code)"
    if let errno { text += " (\(errno), errno \(errno.rawValue))" }
    if let range { text += " on \(range)" }
    if !advice.isEmpty { text += ". \(advice)" }
    return text
  }
}

extension PinError {
  /// Types the negative result of a C function.
  static func kernel(_ result: Int, _ operation: String, _ range: AddressRange? = nil, advice: String = "") -> PinError {
    let errno = Errno(rawValue: CInt(-result))
    if errno == noThread {
      return PinError(
        .limitReached, operation: operation, errno: .resourceTemporarilyUnavailable, range: range,
        advice: advice.isEmpty ? threadAdvice : advice)
    }
    let (code, hint) = meaning(of: errno)
    return PinError(code, operation: operation, errno: errno, range: range, advice: advice.isEmpty ? hint : advice)
  }

  /// EUSERS, which no call that PinKit makes answers: stands for the EAGAIN of a thread that could not be started, where another EAGAIN may come
  /// the same way.
  static let noThread = Errno(rawValue: 87)
  static let threadAdvice =
    "The user or the cgroup may have no more threads: raise `ulimit -u`, or the cgroup's pids.max "
    + "(TasksMax= under systemd); `sysctl kernel.threads-max` is the machine's."

  private static func meaning(of errno: Errno) -> (Code, String) {
    switch errno {
    case .permissionDenied, .notPermitted:
      (.permissionDenied, "Run `pinctl doctor`: it names the setting that allows it.")
    case .noMemory:
      (
        .outOfMemory,
        "The machine has no memory left, or vm.max_map_count is reached: raise it with "
          + "`sysctl -w vm.max_map_count=262144`."
      )
    case .noSpace, .diskQuotaExceeded: (.outOfSpace, "Free some space and try again; nothing was lost.")
    case .fileTooLarge:
      (
        .limitReached,
        "The limit on the size of files (`ulimit -f`), which memory files count towards, or the file system allows no file that large."
      )
    case .tooManyOpenFiles: (.limitReached, "Raise the limit on open files (`ulimit -n`).")
    case .tooManyOpenFilesInSystem: (.limitReached, "Raise `fs.file-max`.")
    case .badFileDescriptor:
      (
        .handlerLost,
        closedAdvice
      )
    case .resourceBusy: (.inUse, "")
    case .ioError:
      (.inputOutput, "The device or its file system failed; what was not written is still in memory. See the kernel's log.")
    case .readOnlyFileSystem: (.readOnly, "The file system is mounted read-only; remount it, or use another file.")
    // ENOTTY: an ioctl that the kernel is too old for.
    case .noFunction, .invalidArgument, .inappropriateIOCTLForDevice, .notSupportedOnSocket, .notSupported:
      (.unsupported, "This kernel does not know the call, or not for this kind of memory; `pinctl doctor` lists what works.")
    case .noSuchProcess, .noSuchFileOrDirectory:
      (.mappingChanged, "The range is no longer registered: it was unmapped or mapped over behind PinKit's back.")
    default: (.system, "")
    }
  }
}

extension PinError {
  static func notInherited(_ operation: String) -> PinError {
    PinError(.notInherited, operation: operation, advice: "Make a new one in the child, or use posix_spawn.")
  }

  /// Throws unless `result` is a success; returns it otherwise.
  @discardableResult
  static func check(
    _ result: some BinaryInteger, _ operation: @autoclosure () -> String, _ range: AddressRange? = nil
  ) throws(PinError) -> Int {
    guard result < 0 else { return Int(result) }
    throw .kernel(Int(result), operation(), range)
  }

  /// Throws unless `result` is a descriptor of the file of `/proc` or `/sys` at `path`.
  static func opened(_ result: CInt, _ path: String) throws(PinError) -> CInt {
    if result == -Errno.permissionDenied.rawValue, path.hasPrefix("/proc/self/") {
      throw PinError(
        .permissionDenied, operation: "open \(path)", errno: .permissionDenied,
        advice: "A process that has changed its user is not dumpable, and its /proc/self is root's: call "
          + "prctl(PR_SET_DUMPABLE, 1) after setuid(2), or keep CAP_SYS_PTRACE.")
    }
    guard result == -Errno.noSuchFileOrDirectory.rawValue else { return CInt(try check(result, "open \(path)")) }
    throw PinError(
      .unsupported, operation: "open \(path)", errno: .noSuchFileOrDirectory,
      advice:
        "This kernel does not have it, or this process cannot reach /proc (after chroot, or with another file system mounted over it): do this before the process locks itself in, or bind-mount /proc there."
    )
  }
}
