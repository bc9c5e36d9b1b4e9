extension FileStore {
  /// Fills `memory` from the page cache; false if the device would have to be waited for, which is then asked to begin.
  ///
  /// One system call, neither a lock nor an allocation. Never with ``isDirect``.
  public func readNow(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) -> Bool {
    guard pages.lowerBound >= 0, pages.upperBound <= geometry.pageCount else { return false }
    let offset = pages.lowerBound &* Memory.pageSize
    let room = memory.count
    let wanted = min(room, geometry.byteCount &- offset)
    guard wanted > 0, let start = memory.baseAddress,
      unsafe file.readNow(readingNow, into: start, count: wanted, at: offset)
    else { return false }
    if wanted < room { unsafe Self.clear(memory, from: wanted) }
    return true
  }

  /// Fills `memory`, with zeros behind the end of the file's last page.
  ///
  /// Blocks. Short reads are continued.
  /// - Throws: `.fileChanged` if the file is shorter than it was when it was opened, `.inputOutput`; what the memory holds then is undefined.
  public func read(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) throws(PinError) {
    guard file.isOfThisProcess else { throw .notInherited("read a store") }
    try check(pages, memory.count)
    let start = memory.baseAddress!  // not empty
    let offset = pages.lowerBound * Memory.pageSize
    let room = memory.count
    let wanted = min(room, geometry.byteCount - offset)
    var done = 0
    // Direct reads are of whole sectors: at the file's end they ask for more than there is.
    while isDirect, done < wanted, done.isMultiple(of: sector) {
      let got = unsafe file.read(file.direct, into: start + done, count: room - done, at: offset + done)
      guard got > 0 else { break }  // the other descriptor finds out why
      done += got
    }
    done = min(done, wanted)
    while done < wanted {
      let got = unsafe file.read(file.descriptor, into: start + done, count: wanted - done, at: offset + done)
      guard got > 0 else { throw got < 0 ? .store(got, "read \(file.name) at \(offset + done)") : shrunk(offset + done) }
      done += got
    }
    unsafe Self.clear(memory, from: wanted)
  }

  private static func clear(_ memory: UnsafeMutableRawBufferPointer, from end: Int) {
    unsafe UnsafeMutableRawBufferPointer(rebasing: memory[end...]).initializeMemory(as: UInt8.self, repeating: 0)
  }

  func checkBounds(_ pages: Range<Int>) throws(PinError) {
    guard pages.lowerBound >= 0, pages.upperBound <= geometry.pageCount else {
      throw PinError(
        .outOfBounds, operation: "pages \(pages) of \(file.name)", advice: "It has \(geometry.pageCount) pages.")
    }
  }

  func check(_ pages: Range<Int>, _ memory: Int) throws(PinError) {
    try checkBounds(pages)
    guard !pages.isEmpty, memory == pages.count * Memory.pageSize else {
      throw PinError(
        .invalidArgument, operation: "\(pages.count) pages of \(file.name) with \(memory) bytes of memory",
        advice: "The memory must be as large as the pages, and there must be at least one.")
    }
  }

  func shrunk(_ size: Int) -> PinError {
    PinError(
      .fileChanged, operation: "use \(file.name)",
      advice:
        "It had \(geometry.byteCount) bytes and ends at \(size) now: somebody truncated it. Restore it, and make the store anew."
    )
  }
}
