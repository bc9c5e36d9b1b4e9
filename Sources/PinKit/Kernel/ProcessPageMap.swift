internal import CUffd
internal import Synchronization

/// The process's own `/proc/self/pagemap`, opened once and early: what locks itself in later (chroot, an empty /proc, another user) can
/// still have its pages looked at (K5). A child of `fork()` closes it, as it shows the parent's memory, and opens its own.
enum ProcessPageMap {
  static let path = "/proc/self/pagemap"
  private struct State {
    var generation: UInt32 = 0
    var file: KnownDescriptor?
  }
  private static let state = Mutex(State())

  /// - Throws: ``PinError`` `.unsupported` where /proc cannot be reached and nobody came here while it could.
  static func file() throws(PinError) -> KnownDescriptor {
    // A child that was forked in between would not know of the descriptor.
    try Uffd.withoutForks { () throws(PinError) in
      try state.withLock { state throws(PinError) in
        if state.generation == Kernel.forkGeneration, let file = state.file, file.checked >= 0 { return file }
        let opened = try PinError.opened(unsafe path.withCString { unsafe cuffd_open_file($0, 0) }, path)
        let file = KnownDescriptor.raised(opened)
        do throws(PinError) { try Uffd.closeInChild(file.checked) } catch {
          file.close()
          throw error
        }
        state = State(generation: Kernel.forkGeneration, file: file)
        return file
      }
    }
  }
}
