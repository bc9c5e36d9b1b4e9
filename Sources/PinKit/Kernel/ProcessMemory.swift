internal import CUffd

/// `/proc/self/mem`: reads memory of this process that the program may not read at the moment, as a debugger does.
final class ProcessMemory: Sendable {
  private let file: KnownDescriptor

  /// - Throws: ``PinError``, for example without /proc.
  init() throws(PinError) {
    file = .raised(try PinError.opened(unsafe cuffd_open_file("/proc/self/mem", 0), "/proc/self/mem"))
  }
  deinit { file.close() }

  /// Fills `target` with the bytes at `address`. 0 or a negated errno; a kernel can be told to refuse (`proc_mem.force_override`).
  func read(_ address: UInt, into target: UnsafeMutableRawPointer, count: Int) -> CInt {
    let descriptor = file.checked
    var done = 0
    while done < count {
      let result = unsafe cuffd_pread(descriptor, target + done, count - done, Int64(address) + Int64(done))
      if result < 0 { return CInt(result) }
      if result == 0 { return -5 }  // EIO: nothing is mapped there
      done += result
    }
    return 0
  }
}
