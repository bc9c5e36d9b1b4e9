internal import CUffd

/// `/proc/self/mem`: reads memory of this process that the program may not read at the moment, as a debugger does. A child of `fork()` closes it.
final class ProcessMemory: Sendable {
  private let file: KnownDescriptor
  private let forkGeneration = Kernel.forkGeneration

  /// - Throws: ``PinError``, for example without /proc.
  init() throws(PinError) {
    file = try Uffd.withoutForks { () throws(PinError) in
      let file = KnownDescriptor.raised(try PinError.opened(unsafe cuffd_open_file("/proc/self/mem", 0), "/proc/self/mem"))
      do throws(PinError) { try Uffd.closeInChild(file.checked) } catch {
        file.close()
        throw error
      }
      return file
    }
  }

  deinit {
    // In a child the number may be somebody else's by now.
    guard forkGeneration == Kernel.forkGeneration else { return }
    Uffd.withoutForks {
      let number = file.checked
      if number >= 0 { Uffd.forgetInChild(number) }
      file.close()
    }
  }

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
