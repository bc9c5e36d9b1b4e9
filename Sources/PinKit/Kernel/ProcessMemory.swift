internal import CUffd
internal import SystemPackage

/// `/proc/self/mem`: reads memory of this process that the program may not read at the moment, as a debugger does. A child of `fork()` closes it.
final class ProcessMemory: Sendable {
  private let file: KnownDescriptor
  /// Whether it reads pages that nobody may read; a kernel can be told to refuse (`proc_mem.force_override`).
  private let reads: Bool
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
    reads = Self.readsHidden(file)
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

  private static func readsHidden(_ file: KnownDescriptor) -> Bool {
    guard let page = try? Mapping(count: Memory.pageSize), Memory.protect(page.range, []) == 0 else { return false }
    var byte: UInt8 = 0
    return unsafe cuffd_pread(file.checked, &byte, 1, Int64(page.range.start)) == 1
  }

  /// Whether the answer of ``read(_:into:count:)`` means that there are no bytes at the address, and not that they are not to be had this way.
  func meansNoBytes(_ result: CInt) -> Bool { reads && result == -Errno.ioError.rawValue }

  /// Fills `target` with the bytes at `address`. 0 or a negated errno: EFAULT is the target's.
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
