internal import CUffd

/// XXH3-128 of some bytes: finds accidents, not forgeries.
struct Checksum: Sendable, Hashable {
  let high: UInt64
  let low: UInt64

  init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  init(of bytes: UnsafeRawBufferPointer) {
    let found = unsafe cuffd_checksum(bytes.baseAddress, bytes.count)
    self.init(high: found.high, low: found.low)
  }
}

extension UnsafeRawBufferPointer {
  /// Whether every byte is zero. Runs at the speed of memory.
  var isZero: Bool { unsafe cuffd_is_zero(baseAddress, count) != 0 }
}
