extension SnapshotImage {
  /// Reads every stored page and checks that the bytes are those that were written. Blocks meanwhile.
  ///
  /// Finds any accident: bits that changed, parts that were cut off, holes that were punched. It is no signature, and finds no
  /// forgery.
  /// - Parameter progress: Called on this thread, at the beginning and after every block of at most 4 MiB.
  /// - Throws: ``PinError``: `.corruptImage` naming the file, the block, its pages and both checksums; `.notFound`; `.cancelled`;
  ///   what reading the file throws.
  public func verify(
    progress: (ImageProgress) -> ImageProgress.Decision = { _ in .proceed }
  ) throws(PinError) {
    var tally = ImageTally(operation: "verify \(path)", pagesTotal: storedPages.count)
    try tally.begin(progress)
    try verify(&tally, holdsSecrets: { false }, progress)
  }

  func verify(
    _ tally: inout ImageTally, holdsSecrets: @escaping () -> Bool, _ progress: (ImageProgress) -> ImageProgress.Decision
  ) throws(PinError) {
    var reader = try ImageReader.open(self, holdsSecrets: holdsSecrets)
    let bytesBefore = tally.state.bytesTransferred
    unsafe try reader.read(storedPages) { (block, bytesRead) throws(PinError) in
      unsafe try tally.add(pages: block.runs.pageTotal, bytes: bytesBefore + bytesRead, progress)
    }
  }
}

/// Counts for a progress closure, and asks it.
struct ImageTally {
  let operation: String
  private(set) var state: ImageProgress

  init(operation: String, pagesTotal: Int) {
    self.operation = operation
    state = ImageProgress(pagesDone: 0, pagesTotal: pagesTotal, bytesTransferred: 0)
  }

  func begin(_ progress: (ImageProgress) -> ImageProgress.Decision) throws(PinError) {
    guard progress(state) == .proceed else { throw .cancelled(operation) }
  }

  mutating func add(
    pages: Int, bytes: Int, _ progress: (ImageProgress) -> ImageProgress.Decision
  ) throws(PinError) {
    state.pagesDone += pages
    state.bytesTransferred = bytes
    try begin(progress)
  }
}
