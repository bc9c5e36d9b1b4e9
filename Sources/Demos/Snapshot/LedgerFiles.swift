internal import Dispatch
internal import Foundation
internal import Glibc

/// A directory for a demo's files that goes when the demo ends, also by Ctrl-C.
final class LedgerFiles {
  let directory: String
  private let signals: [any DispatchSourceSignal]
  private static let watched = [SIGINT, SIGTERM, SIGHUP]

  /// `name` is a part of the directory's.
  init(name: String = "snapshot") throws {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent("pinctl-\(name)-\(UUID().uuidString)")
    self.directory = directory.path
    let watching = DispatchGroup()
    signals = Self.watched.map { number in
      let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
      source.setEventHandler {
        // A file may come to be while the others go.
        for _ in 0..<3 where FileManager.default.fileExists(atPath: directory.path) {
          try? FileManager.default.removeItem(at: directory)
        }
        Self.die(of: number)
      }
      watching.enter()
      source.setRegistrationHandler { watching.leave() }
      source.resume()
      return source
    }
    // The directory is never there without them.
    watching.wait()
    guard unsafe mkdir(directory.path, 0o700) == 0 else { throw LedgerFailure("make \(directory.path)", errno) }
  }

  deinit {
    for source in signals { source.cancel() }
    for number in Self.watched { signal(number, SIG_DFL) }
    try? FileManager.default.removeItem(atPath: directory)
  }

  /// As if nobody had caught the signal. Dispatch blocks those that it watches in its own threads.
  private static func die(of number: CInt) {
    signal(number, SIG_DFL)
    var mask = sigset_t()
    unsafe sigemptyset(&mask)
    unsafe sigaddset(&mask, number)
    unsafe pthread_sigmask(SIG_UNBLOCK, &mask, nil)
    raise(number)
  }

  func path(_ name: String) -> String { "\(directory)/\(name)" }

  /// What a file takes of its file system, in bytes.
  static func allocatedBytes(_ path: String) -> Int {
    var status = stat()
    return unsafe stat(path, &status) == 0 ? Int(status.st_blocks) * 512 : 0
  }
}

/// A file's bytes, for reading.
@safe final class LedgerFileView {
  private let start: UnsafeMutableRawPointer
  private let count: Int

  init(_ path: String) throws {
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw LedgerFailure("open \(path)", errno) }
    defer { close(descriptor) }
    count = Int(lseek(descriptor, 0, SEEK_END))
    let mapped = unsafe mmap(nil, max(1, count), PROT_READ, MAP_SHARED, descriptor, 0)
    guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else { throw LedgerFailure("map \(path)", errno) }
    unsafe start = mapped
  }

  deinit { unsafe munmap(start, max(1, count)) }

  /// Read only, whatever the type says. Lives as long as the view.
  var bytes: UnsafeMutableRawBufferPointer { unsafe UnsafeMutableRawBufferPointer(start: start, count: count) }
}

/// What the kernel refused.
struct LedgerFailure: Error, CustomStringConvertible {
  let description: String
  /// Whether there can be no child here. What becomes of a child that was made is another matter.
  let isRefusedFork: Bool

  init(_ operation: String, _ number: CInt) {
    isRefusedFork = operation == "fork" && [EAGAIN, ENOMEM, ENOSYS, EPERM].contains(number)
    description = unsafe "\(operation): \(String(cString: strerror(number))) (errno \(number))"
  }
}
