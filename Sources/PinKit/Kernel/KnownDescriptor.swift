internal import CUffd
internal import SystemPackage

/// Which file a descriptor's number stands for: its device and inode.
struct FileIdentity: Sendable, Hashable {
  private let device: UInt64
  private let inode: UInt64

  /// `nil` if the number is not open.
  init?(of descriptor: CInt) {
    var found = cuffd_identity()
    guard unsafe cuffd_identify(descriptor, &found) == 0 else { return nil }
    self.init(device: found.device, inode: found.inode)
  }

  init(device: UInt64, inode: UInt64) {
    self.device = device
    self.inode = inode
  }

  var words: (device: UInt64, inode: UInt64) { (device, inode) }
  fileprivate var raw: cuffd_identity { cuffd_identity(device: device, inode: inode) }

  /// Whether the number stands for this file. One fstat(2), 0.4 µs; async-signal-safe.
  @inline(__always) func isOf(_ descriptor: CInt) -> Bool { cuffd_is(descriptor, raw) != 0 }
  /// The same for a file of a file system that may have failed, and then does not say.
  @inline(__always) func mayBeOf(_ descriptor: CInt) -> Bool { cuffd_may_be(descriptor, raw) != 0 }
  /// Closes the number if it stands for this file.
  func close(_ descriptor: CInt) { cuffd_close_own(descriptor, raw) }
  func hasMark(_ descriptor: CInt, _ mark: CInt, owner: CInt) -> Bool { cuffd_has_mark(descriptor, raw, mark, owner) != 0 }
}

/// A descriptor that is kept for long, and which file it was made for: other code of the process may close any number, and have it for a
/// file of its own then (K5). Whoever uses the number asks for ``checked`` each time.
///
/// Between the look and the use nothing is held: a number that is closed *and* taken by other code in that moment is not noticed.
struct KnownDescriptor: Sendable {
  private let number: CInt
  private let identity: FileIdentity
  private let mayFail: Bool
  /// What a file of PinKit's own is marked with, so that it is known at a glance; 0: it is not.
  private let token: UInt32

  /// `number` was opened just now.
  ///
  /// - Parameters:
  ///   - mayFail: It is a file whose file system may fail: one that does not answer is not taken for closed.
  ///   - isMarked: Nobody else has this opening of the file, and it is looked at often.
  init(_ number: CInt, mayFail: Bool = false, isMarked: Bool = false) {
    self.number = number
    self.mayFail = mayFail
    token = isMarked ? cuffd_mark_quietly(number) : 0
    // An open number has an identity; one that was closed already never has this one.
    identity = FileIdentity(of: number) ?? FileIdentity(device: .max, inode: .max)
  }

  /// The number, or -1 if it does not stand for the file any more: whatever is done with that fails with EBADF.
  @inline(__always) var checked: CInt { isOwn ? number : -1 }
  /// The same after a glance where there is a mark, which takes less than half the time: for calls that only read. A file of other code's that
  /// has the number now is taken for it if it was given the very same signal by `F_SETSIG`.
  @inline(__always) var glanced: CInt {
    token != 0 && cuffd_seems_quietly_marked(number, token) != 0 ? number : checked
  }
  func isSameNumber(as other: KnownDescriptor) -> Bool { number == other.number }
  /// Closes it, unless the number is somebody else's.
  func close() { if isOwn { cuffd_close(number) } }
  @inline(__always) private var isOwn: Bool { mayFail ? identity.mayBeOf(number) : identity.isOf(number) }

  /// Moves what was opened out of the way of code that closes low numbers.
  static func raised(_ number: CInt) -> KnownDescriptor { KnownDescriptor(cuffd_raise(number)) }
}

extension PinError {
  /// The advice where a number of PinKit's was closed.
  static let closedAdvice =
    "Other code in this process closed a descriptor of PinKit's, which are not its own to close: find the loop that closes descriptors "
    + "(closefrom, close_range, or close in a loop), and let it run before PinKit is used, or leave out what it did not open."
}
