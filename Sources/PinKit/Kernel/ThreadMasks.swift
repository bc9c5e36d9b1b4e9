internal import CUffd

/// Signals that threads of this process block.
enum ThreadMasks {
  /// How many threads block a signal, and the first of them, by number and name; none where `/proc` cannot be read. Threads of io_uring, which
  /// run nothing of the program's, do not count, nor do threads that are just being made, which block everything for a moment.
  static func blocking(_ signal: CInt) -> (count: Int, first: [String]) {
    if look(signal).count == 0 { return (0, []) }
    Kernel.pause(nanoseconds: 2_000_000)
    let (count, first) = look(signal)
    return (count, first.map { "\($0) \(name($0))" })
  }

  private static func name(_ thread: Int32) -> String {
    let text = (try? ProcessMaps.readFile("/proc/self/task/\(thread)/comm")) ?? ""
    return String(text.prefix { $0 != "\n" })
  }

  private static func look(_ signal: CInt) -> (count: Int, first: [Int32]) {
    var threads = InlineArray<8, Int32>(repeating: 0)
    let count = unsafe withUnsafeMutablePointer(to: &threads) {
      unsafe cuffd_threads_blocking(signal, UnsafeMutableRawPointer($0).assumingMemoryBound(to: Int32.self), 8)
    }
    guard count > 0 else { return (0, []) }
    return (Int(count), (0..<min(8, Int(count))).map { threads[$0] })
  }
}
