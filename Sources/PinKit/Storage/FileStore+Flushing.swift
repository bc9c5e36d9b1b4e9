internal import Synchronization
internal import SystemPackage

extension FileStore {
  /// Makes everything durable whose ``write(_:)`` has returned, and the file's name once after it was made.
  ///
  /// Blocks; one flush at a time. **After an error nothing may be taken for durable that was written since the last success, and it must
  /// be written again**: the kernel forgets pages that it failed to write, reports that once, and would call the next fdatasync(2) a success.
  /// This store does not: until those pages have been written again, each flush throws.
  /// - Throws: `.inputOutput`, `.outOfSpace`; `.fileChanged` if the file was truncated, or its path names another one
  ///   (``Options/checksName``).
  public func flush() throws(PinError) {
    // Before the lock, which a thread of the parent may have held.
    guard file.isOfThisProcess else { throw .notInherited("flush a store") }
    // The closure cannot throw typed errors that are inferred through the lock's generics.
    let result: Result<Void, PinError> = account.flushing.withLock { _ in
      do throws(PinError) { return .success(try flushAlone()) } catch { return .failure(error) }
    }
    try result.get()
  }

  private func flushAlone() throws(PinError) {
    if !geometry.isReadOnly {
      let runs = account.beginSync()
      do throws(PinError) { try file.sync() } catch {
        account.failed(runs)
        throw error
      }
      if account.mustSyncDirectory, let path {
        do throws(PinError) { try NamedFile.syncDirectory(of: path) } catch {
          guard let errno = error.errno else { throw error }
          throw .store(Int(-errno.rawValue), error.operation)
        }
        account.mustSyncDirectory = false
      }
    }
    let size = try file.state().size
    guard size >= geometry.byteCount else {
      if !geometry.isReadOnly { account.truncated(at: size) }
      throw shrunk(size)
    }
    if options.checksName, let path, try !file.isNamed(by: path) {
      throw PinError(
        .fileChanged, operation: "flush \(path)",
        advice:
          "The path names another file now, or none: it was deleted, moved or replaced, and nobody will find what was written."
      )
    }
    let lost = account.lost
    guard lost.isEmpty else {
      throw PinError(
        .inputOutput, operation: "flush \(file.name)",
        advice: "\(lost.count) pages may have been lost when a flush failed: write them again, and flush then.")
    }
  }
}
