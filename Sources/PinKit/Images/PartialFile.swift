/// A file in the making: it has another name, `<target>.partial`, until it is whole, and is locked until then.
///
/// The lock tells a file that somebody is writing from one that a killed process left behind: such a one is removed by the next
/// who writes to the same path, and until then does no harm. Dropping the value removes the file, unless it was published.
struct PartialFile: ~Copyable {
  static let suffix = ".partial"

  let target: String
  let file: NamedFile
  private var isPublished = false
  private let forkGeneration = Kernel.forkGeneration

  private init(target: String, file: consuming NamedFile) {
    self.target = target
    self.file = file
  }

  deinit {
    // A child of fork() that drops it leaves the file to its parent.
    guard !isPublished, forkGeneration == Kernel.forkGeneration else { return }
    _ = try? NamedFile.remove(file.path)
    // The kernel holds files of io_uring operations for a moment after they have completed: the name alone does not give the
    // space back before the caller hears of the failure.
    _ = try? file.setSize(0)
  }

  /// Makes the file, empty, beside where it shall be.
  ///
  /// - Throws: `.inUse` if somebody is writing to the same target; `.alreadyExists` if there is such a file and `replacing` is not
  ///   asked for.
  static func begin(_ target: String, replacing: Bool) throws(PinError) -> PartialFile {
    try NamedFile.check(path: target)
    if let found = try NamedFile.attributes(of: target) {
      guard replacing else { throw .alreadyExists(target) }
      guard found.isRegular else {
        throw PinError(.invalidArgument, operation: "write \(target)", advice: "What is there is no plain file.")
      }
    }
    let path = target + suffix
    for _ in 0..<100 {
      guard let file = try create(path) else {
        try removeStale(path, of: target)
        continue
      }
      // Between its making and its lock it may have been taken for a stale one.
      if try file.tryLock(), try stillNames(path, file) { return PartialFile(target: target, file: file) }
    }
    throw beingWritten(target)
  }

  /// Gives the file its name, in one step. The lock goes with the value, so that nobody begins before its writer has finished.
  mutating func publish(replacing: Bool) throws(PinError) {
    // One that was made before fork() is the parent's to publish.
    guard forkGeneration == Kernel.forkGeneration else { throw .notInherited("write \(target)") }
    try NamedFile.rename(file.path, to: target, replacing: replacing)
    isPublished = true
  }

  private static func create(_ path: String) throws(PinError) -> NamedFile? {
    do throws(PinError) { return try .create(path) } catch  where error.code == .alreadyExists { return nil }
  }

  private static func removeStale(_ path: String, of target: String) throws(PinError) {
    guard let found = try NamedFile.attributes(of: path) else { return }
    guard found.isRegular else {
      throw PinError(.invalidArgument, operation: "write \(path)", advice: "What is there is no plain file; remove it.")
    }
    guard let file = try open(path) else { return }
    guard try file.tryLock() else { throw beingWritten(target) }
    // It may have been published, or replaced, since it was opened.
    if try stillNames(path, file) { try NamedFile.remove(path) }
  }

  private static func open(_ path: String) throws(PinError) -> NamedFile? {
    do throws(PinError) { return try .open(path, followingLinks: false) } catch  where error.code == .notFound { return nil }
  }

  private static func stillNames(_ path: String, _ file: borrowing NamedFile) throws(PinError) -> Bool {
    let attributes = try file.attributes()
    return try NamedFile.attributes(of: path).map(attributes.isSameFile) ?? false
  }

  private static func beingWritten(_ target: String) -> PinError {
    PinError(
      .inUse, operation: "write \(target)", advice: "Another thread or process is writing to that path; let it finish.")
  }
}
