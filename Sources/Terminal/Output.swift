internal import Glibc
internal import Synchronization

/// What a program writes. Whoever reads it may be gone, or its disk be full: that is an error, and neither a trap nor a success.
package enum Output {
  package struct Failure: Error, CustomStringConvertible {
    package let errno: CInt
    package var description: String { "the output could not be written: \(unsafe String(cString: strerror(errno)))" }
  }

  /// The first reason why output was lost: an errno.
  private static let lost = Mutex<CInt>(0)

  /// Writes lines at once, where print(_:) keeps them back when they go into a pipe. If they cannot be written, ``check()`` throws.
  package static func line(_ text: String) {
    let failure = write(text, to: 1)
    if failure != 0 { lost.withLock { if $0 == 0 { $0 = failure } } }
  }

  /// Writes a line to standard error; nobody can be told where that cannot be done.
  package static func note(_ text: String) { _ = write(text, to: 2) }

  /// Throws if any of the output was lost.
  package static func check() throws(Failure) {
    let failure = lost.withLock { $0 }
    if failure != 0 { throw Failure(errno: failure) }
  }

  /// 0, or an errno.
  private static func write(_ text: String, to descriptor: CInt) -> CInt {
    let bytes = Array((text + "\n").utf8)
    var done = 0
    while done < bytes.count {
      let put = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress! + done, bytes.count - done) }
      if put < 0, errno == EINTR { continue }
      if put <= 0 { return put == 0 ? ENOSPC : errno }
      done += put
    }
    return 0
  }
}
