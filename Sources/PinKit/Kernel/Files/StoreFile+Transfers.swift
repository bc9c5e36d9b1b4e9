internal import CUffd
internal import SystemPackage

extension StoreFile {
  /// Reads all of it without waiting, or returns false.
  @inline(__always) func readNow(
    _ how: ReadingNow, into start: UnsafeMutableRawPointer, count: Int, at offset: Int
  ) -> Bool {
    switch how {
    case .nowait: unsafe cuffd_store_read_now(readable, start, count, Int64(offset)) == count
    case .plain: unsafe cuffd_store_read(readable, start, count, Int64(offset)) == count
    case .never: false
    }
  }

  /// Reads some; how many bytes, 0 at the file's end, or a negative errno.
  func read(_ descriptor: CInt, into start: UnsafeMutableRawPointer, count: Int, at offset: Int) -> Int {
    Self.retrying { unsafe cuffd_store_read(descriptor, start, count, Int64(offset)) }
  }

  /// Writes some of the memory; how many bytes, or a negative errno.
  func write(
    _ descriptor: CInt, _ vectors: borrowing MemoryVectors, _ range: Range<Int>, at offset: Int, isAtomic: Bool
  ) -> Int {
    unsafe cuffd_store_write(
      descriptor, vectors.pointer(to: range.lowerBound), CInt(range.count), Int64(offset), isAtomic ? 1 : 0)
  }

  /// Takes space for `range` (bytes) of the file; 0 or a negative errno.
  func reserve(_ range: Range<Int>) -> CInt {
    Self.retrying { cuffd_store_reserve(descriptor, Int64(range.lowerBound), Int64(range.count)) }
  }

  /// fdatasync(2), of everything that has been written through any descriptor.
  func sync() throws(PinError) { try Self.check(Self.retrying { cuffd_store_sync(descriptor) }, "fdatasync", name) }

  /// Runs `body`, whose writes beyond `ulimit -f` fail with EFBIG and do not end the process by SIGXFSZ. It says whether one did.
  static func withoutSizeSignals(_ body: () -> Bool) {
    if cuffd_xfsz_is_limited() == 0 {
      _ = body()
      return
    }
    var state: InlineArray<17, UInt64> = .init(repeating: 0)
    unsafe cuffd_xfsz_hold(&state)
    let came = body()
    unsafe cuffd_xfsz_release(&state, came ? 1 : 0)
  }
}
