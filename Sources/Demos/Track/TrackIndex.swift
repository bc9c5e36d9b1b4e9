internal import Glibc
internal import Synchronization

/// A region's bytes as one writer sees them: whatever it stores is noted in its log first.
@safe struct LoggedMemory {
  private let base: UnsafeMutableRawPointer
  private let count: Int
  private let pageShift: Int
  private let log: WriteLog

  /// `bytes` must outlive the value.
  init(_ bytes: UnsafeMutableRawBufferPointer, pageSize: Int, log: WriteLog) {
    unsafe base = bytes.baseAddress!
    count = bytes.count
    pageShift = pageSize.trailingZeroBitCount
    self.log = log
  }

  @inline(__always) func load<Value: BitwiseCopyable>(_ offset: Int, as: Value.Type = Value.self) -> Value {
    precondition(offset >= 0 && offset + MemoryLayout<Value>.size <= count)
    return unsafe base.load(fromByteOffset: offset, as: Value.self)
  }

  /// `offset` must be aligned for the value, so that it lies on one page.
  @inline(__always) func store<Value: BitwiseCopyable>(_ value: Value, at offset: Int) {
    precondition(offset >= 0 && offset + MemoryLayout<Value>.size <= count)
    log.note(offset >> pageShift)
    unsafe base.storeBytes(of: value, toByteOffset: offset, as: Value.self)
  }
}

/// Spins, then yields. Every writer wants the stripe of "the": a mutex that hands itself over to whoever waits would make all of them
/// sleep and wake in turn, word by word, and their convoy would be what is measured.
private final class StripeLock: Sendable {
  private let isHeld = Atomic<Bool>(false)

  func lock() {
    var tries = 0
    while isHeld.load(ordering: .relaxed) || isHeld.exchange(true, ordering: .acquiring) {
      tries += 1
      // Its holder may be waiting for a fault to be served.
      if tries % 64 == 0 { sched_yield() }
    }
  }

  func unlock() { isHeld.store(false, ordering: .releasing) }
}

/// The word index in the region: what its writers share in ordinary memory.
final class TrackIndex: Sendable {
  private static let stripes = 64

  let layout: TrackIndexLayout
  /// Bucket `b` and the entries behind it belong to stripe `b % 64`.
  private let locks = (0..<TrackIndex.stripes).map { _ in StripeLock() }
  private let nextEntry: Atomic<Int>
  private let nextExtent: Atomic<Int>

  /// Of an empty index: the region must read as zeros.
  init(layout: TrackIndexLayout) {
    self.layout = layout
    nextEntry = Atomic(layout.entries.lowerBound)
    nextExtent = Atomic(layout.postings.lowerBound)
  }

  static func hash(_ word: some Sequence<UInt8>) -> UInt64 {
    // FNV-1a, stirred, as the low bits choose the bucket.
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in word { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    return hash ^ hash >> 29
  }

  fileprivate func withLock(of bucket: Int, _ body: () -> Void) {
    let lock = locks[bucket % Self.stripes]
    lock.lock()
    body()
    lock.unlock()
  }

  fileprivate func allocateEntry(_ size: Int) -> Int {
    let at = nextEntry.add(size, ordering: .relaxed).oldValue
    precondition(at + size <= layout.entries.upperBound, "the index has more words than the corpus")
    return at
  }

  fileprivate func allocateExtent() -> Range<Int> {
    let at = nextExtent.add(layout.extentSize, ordering: .relaxed).oldValue
    precondition(at + layout.extentSize <= layout.postings.upperBound, "the index has more postings than the corpus")
    return at..<at + layout.extentSize
  }
}

/// One thread's hand in building the index.
struct TrackIndexWriter {
  private let index: TrackIndex
  private let memory: LoggedMemory
  /// What is left of this writer's extent.
  private var extent = 0..<0

  init(index: TrackIndex, memory: LoggedMemory) {
    self.index = index
    self.memory = memory
  }

  /// Adds one occurrence of `word`.
  mutating func add(_ word: [UInt8], document: UInt32, offset: UInt32) {
    let bucket = Int(truncatingIfNeeded: TrackIndex.hash(word)) & (index.layout.bucketCount - 1)
    index.withLock(of: bucket) {
      let entry = find(word, bucket) ?? insert(word, bucket)
      memory.store(memory.load(entry + 4, as: UInt32.self) + 1, at: entry + 4)
      let chunk = room(in: entry)
      let used = memory.load(chunk + 4, as: UInt32.self)
      memory.store(UInt64(document) << 32 | UInt64(offset), at: chunk + 8 + Int(used) * 8)
      memory.store(used + 1, at: chunk + 4)
    }
  }

  private func find(_ word: [UInt8], _ bucket: Int) -> Int? {
    var entry = Int(memory.load(bucket * 4, as: UInt32.self))
    while entry != 0 {
      if Int(memory.load(entry + 16, as: UInt32.self)) == word.count, matches(word, entry) { return entry }
      entry = Int(memory.load(entry, as: UInt32.self))
    }
    return nil
  }

  private func matches(_ word: [UInt8], _ entry: Int) -> Bool {
    for index in word.indices where memory.load(entry + TrackIndexLayout.entryHeader + index, as: UInt8.self) != word[index]
    {
      return false
    }
    return true
  }

  private func insert(_ word: [UInt8], _ bucket: Int) -> Int {
    let entry = index.allocateEntry(TrackIndexLayout.entrySize(of: word.count))
    memory.store(memory.load(bucket * 4, as: UInt32.self), at: entry)
    memory.store(UInt32(word.count), at: entry + 16)
    for index in word.indices { memory.store(word[index], at: entry + TrackIndexLayout.entryHeader + index) }
    memory.store(UInt32(entry), at: bucket * 4)
    return entry
  }

  /// The last chunk of an entry, or a new one behind it if it is full.
  private mutating func room(in entry: Int) -> Int {
    let last = Int(memory.load(entry + 12, as: UInt32.self))
    if last != 0, memory.load(last + 4, as: UInt32.self) < UInt32(TrackIndexLayout.postingsPerChunk) { return last }
    if extent.isEmpty { extent = index.allocateExtent() }
    let chunk = extent.lowerBound
    extent = chunk + TrackIndexLayout.chunkSize..<extent.upperBound
    memory.store(UInt32(chunk), at: last == 0 ? entry + 8 : last)
    memory.store(UInt32(chunk), at: entry + 12)
    return chunk
  }
}
