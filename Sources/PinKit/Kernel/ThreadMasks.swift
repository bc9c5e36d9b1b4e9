internal import CUffd

/// Signals that threads of this process block.
enum ThreadMasks {
  /// How many threads block a signal, and the numbers of the first of them; none where `/proc` cannot be read. Threads of io_uring, which run
  /// nothing of the program's, do not count.
  static func blocking(_ signal: CInt) -> (count: Int, first: [Int32]) {
    var threads = InlineArray<8, Int32>(repeating: 0)
    let count = unsafe withUnsafeMutablePointer(to: &threads) {
      unsafe cuffd_threads_blocking(signal, UnsafeMutableRawPointer($0).assumingMemoryBound(to: Int32.self), 8)
    }
    guard count > 0 else { return (0, []) }
    return (Int(count), (0..<min(8, Int(count))).map { threads[$0] })
  }
}
