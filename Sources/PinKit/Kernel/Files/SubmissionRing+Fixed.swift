internal import CUffd

extension SubmissionRing {
  /// Registers memory as fixed buffers, numbered from 0: the kernel's long-term pin on its pages.
  ///
  /// 0 or a negated errno: EFAULT where it may not pin, ENOMEM also beyond RLIMIT_MEMLOCK.
  mutating func registerBuffers(_ memory: [AddressRange]) -> Int {
    let buffers = memory.map { cuffd_buffer(start: UInt64($0.start), length: UInt64($0.count)) }
    return Int(
      unsafe buffers.withUnsafeBufferPointer { unsafe cuffd_ring_register_buffers(raw, $0.baseAddress!, UInt32($0.count)) })
  }

  /// Queues a read into memory inside the fixed buffer `index`.
  mutating func queueReadFixed(
    from descriptor: CInt, at offset: Int, into memory: AddressRange, buffer index: Int, userData: UInt64
  ) -> QueueOutcome {
    let (address, length) = unsafe Self.arguments(memory)
    return Self.outcome(
      unsafe cuffd_ring_read_fixed(raw, descriptor, address, length, Self.position(offset), UInt32(index), userData))
  }

  /// Queues a write of memory inside the fixed buffer `index`.
  mutating func queueWriteFixed(
    to descriptor: CInt, at offset: Int, from memory: AddressRange, buffer index: Int, userData: UInt64
  ) -> QueueOutcome {
    let (address, length) = unsafe Self.arguments(memory)
    return Self.outcome(
      unsafe cuffd_ring_write_fixed(raw, descriptor, address, length, Self.position(offset), UInt32(index), userData))
  }
}

extension Memory {
  /// Fills memory from a file, or writes it to one: how many bytes, or a negated errno. Repeated where a signal came first.
  static func transfer(_ memory: AddressRange, file: CInt, offset: Int, isRead: Bool) -> Int {
    while true {
      let start = unsafe UnsafeMutableRawPointer(bitPattern: memory.start)!
      let result =
        isRead
        ? unsafe cuffd_pread(file, start, memory.count, Int64(offset))
        : unsafe cuffd_pwrite(file, start, memory.count, Int64(offset))
      if result != -4 { return result }
    }
  }
}
