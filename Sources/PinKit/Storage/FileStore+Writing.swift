extension FileStore {
  /// Writes pages, many operations at a time through an io_uring, or one after the other where the process may have none.
  ///
  /// Blocks until all are over. Neighbouring transfers become one operation; short writes are continued; where one transfer
  /// fails, the others are written. The size of the file never changes: what lies behind it of the last page is not written.
  /// - Returns: For each transfer `nil`, or why it is not all written: `.outOfSpace` (also a quota), `.limitReached` (`ulimit -f`),
  ///   `.inputOutput`, `.readOnly`, `.fileChanged` if the file is shorter than it was, `.notInherited` in a child of `fork()`.
  public func write(_ transfers: [PageTransfer]) -> [PinError?] {
    var writes = StoreWrites(self, transfers)
    guard file.isOfThisProcess else {
      writes.failAll(.notInherited("write to a store"))
      return writes.outcomes
    }
    if geometry.isReadOnly {
      writes.failAll(readOnly())
      return writes.outcomes
    }
    do throws(PinError) { try checkSize() } catch {
      writes.failAll(error)
      return writes.outcomes
    }
    let ticket = account.begin(transfers)
    StoreFile.withoutSizeSignals {
      // One operation gains nothing from a queue.
      if writes.count > 1, var ring = rings.take() {
        if writes.run(on: &ring) { rings.give(ring) }
      }
      writes.runOneByOne()
      return writes.exceededSize
    }
    let outcomes = writes.outcomes
    account.end(ticket, transfers) { outcomes[$0] == nil }
    return outcomes
  }

  /// Writing behind its end would make a truncated file longer, with zeros between.
  private func checkSize() throws(PinError) {
    let size = try file.state().size
    guard size >= geometry.byteCount else { throw shrunk(size) }
  }
}
