internal import CUffd

/// Pieces of memory, as one call writes them: an array of `struct iovec`.
@safe struct MemoryVectors: ~Copyable {
  private let words: UnsafeMutablePointer<UInt64>
  let capacity: Int
  private(set) var count = 0

  init(capacity: Int) {
    unsafe words = .allocate(capacity: max(1, capacity) * 2)
    self.capacity = capacity
  }

  deinit { unsafe words.deallocate() }

  mutating func append(_ start: UInt, count bytes: Int) {
    precondition(count < capacity, "more pieces of memory than there is room for")
    unsafe words[count * 2] = UInt64(start)
    unsafe words[count * 2 + 1] = UInt64(bytes)
    count += 1
  }

  /// In bytes.
  func byteCount(_ index: Int) -> Int {
    precondition(index < count, "no such piece of memory")
    return Int(unsafe words[index * 2 + 1])
  }

  /// Leaves out so many bytes, fewer than there are, at the start of one.
  mutating func trim(_ index: Int, by bytes: Int) {
    precondition(bytes < byteCount(index), "nothing would be left of a piece of memory")
    unsafe words[index * 2] += UInt64(bytes)
    unsafe words[index * 2 + 1] -= UInt64(bytes)
  }

  /// Where the kernel finds it and those behind it; as long as the value lives.
  @unsafe func pointer(to index: Int) -> UnsafePointer<UInt64> {
    precondition(index < count, "no such piece of memory")
    return unsafe UnsafePointer(words + index * 2)
  }
}

extension SubmissionRing {
  /// Queues a write of several pieces of memory, one behind the other, to the file's byte `offset` on. `vectors` must live, and stay as
  /// they are, until the completion was taken. `isAtomic`: `RWF_ATOMIC`.
  mutating func queueWrite(
    to descriptor: CInt, at offset: Int, from vectors: borrowing MemoryVectors, _ range: Range<Int>, isAtomic: Bool,
    userData: UInt64
  ) -> QueueOutcome {
    precondition(offset >= 0, "a file offset is negative")
    return unsafe queue { raw in
      unsafe cuffd_ring_write_vectors(
        raw, descriptor, vectors.pointer(to: range.lowerBound), UInt32(range.count), UInt64(offset), isAtomic ? 1 : 0,
        userData)
    }
  }
}
