internal import SystemPackage

/// Reads or writes in flight between the buffers of blocks and one file.
///
/// Through an io_uring where the process may have one: the CPU copies and hashes a block while the kernel moves others. Where it
/// may not (seccomp filters of containers forbid it), one call after the other. The buffers and the file must outlive the value.
struct BlockTransfers: ~Copyable {
  enum Direction { case read, write }

  private struct Transfer {
    var buffer: Int
    var offset: Int
    var memory: AddressRange
  }

  private var ring: SubmissionRing?
  private let hasRing: Bool
  private let file: KnownDescriptor
  private let path: String
  private let direction: Direction
  private var transfers: [Transfer]
  private var free: [Int]
  /// Per buffer.
  private var outstanding = [Int](repeating: 0, count: BlockBuffers.count)
  /// Moved so far.
  private(set) var bytesDone = 0

  private var isWritingBack = false

  /// -1 if other code has closed it (K5): looked at for every block.
  private var descriptor: CInt { file.checked }

  private static let depth = 128
  private static let writeback = UInt64.max

  /// `path` is what an error calls the file.
  init(_ direction: Direction, _ file: KnownDescriptor, path: String) {
    let ring = try? SubmissionRing(entries: Self.depth)
    hasRing = ring != nil
    self.ring = ring
    self.direction = direction
    self.file = file
    self.path = path
    transfers = [Transfer](
      repeating: Transfer(buffer: 0, offset: 0, memory: AddressRange(start: 0, end: 0)), count: Self.depth)
    free = Array((0..<Self.depth).reversed())
  }

  /// Begins to move the bytes between `memory`, which lies in buffer `buffer`, and the file's byte `offset` on.
  mutating func queue(_ buffer: Int, at offset: Int, _ memory: AddressRange) throws(PinError) {
    guard hasRing else { return try moveNow(offset, memory) }
    while free.isEmpty { try wait(forCompletions: 1) }
    let slot = free.removeLast()
    transfers[slot] = Transfer(buffer: buffer, offset: offset, memory: memory)
    outstanding[buffer] += 1
    try hand(slot)
  }

  /// Lets the kernel begin with what was queued; does not block.
  mutating func start() throws(PinError) {
    if hasRing { try wait(forCompletions: 0) }
  }

  /// Keeps the device busy while pages are still being copied: without it, most of the writing is left to the sync.
  mutating func startWriteback() throws(PinError) {
    guard hasRing, !isWritingBack else { return }
    if ring!.queueWriteback(descriptor, userData: Self.writeback) == .queued { isWritingBack = true }
    try start()
  }

  /// Blocks until nothing of the buffer is on its way.
  mutating func finish(_ buffer: Int) throws(PinError) {
    while outstanding[buffer] > 0 { try wait(forCompletions: 1) }
  }

  /// Blocks until there is a buffer of which nothing is on its way. The same ones come again and again, and stay in the caches.
  mutating func idleBuffer() throws(PinError) -> Int {
    while true {
      if let buffer = outstanding.firstIndex(of: 0) { return buffer }
      try wait(forCompletions: 1)
    }
  }

  func isBusy(_ buffer: Int) -> Bool { outstanding[buffer] > 0 }

  mutating func finishAll() throws(PinError) {
    for buffer in outstanding.indices { try finish(buffer) }
  }

  private mutating func hand(_ slot: Int) throws(PinError) {
    let transfer = transfers[slot]
    while true {
      let outcome =
        direction == .read
        ? ring!.queueRead(from: descriptor, at: transfer.offset, into: transfer.memory, userData: UInt64(slot))
        : ring!.queueWrite(to: descriptor, at: transfer.offset, from: transfer.memory, userData: UInt64(slot))
      if outcome == .queued { return }
      try wait(forCompletions: 0)
    }
  }

  private mutating func wait(forCompletions count: Int) throws(PinError) {
    var refused: PinError?
    do throws(PinError) { try ring!.submit(waitingFor: count) } catch {
      // Short of memory, or of room for completions: both may pass when those that are there are taken.
      guard error.errno == .resourceTemporarilyUnavailable || error.errno == .resourceBusy else { throw error }
      refused = error
    }
    var taken = 0
    while let completion = ring!.nextCompletion() {
      taken += 1
      if completion.userData == Self.writeback {
        isWritingBack = false  // an error of it is the sync's to report
        continue
      }
      let slot = Int(completion.userData)
      switch completion.outcome {
      case .failed(.interrupted), .failed(.resourceTemporarilyUnavailable): try hand(slot)
      case .failed(let errno): throw .file(Int(-errno.rawValue), "\(direction) \(path) at \(transfers[slot].offset)")
      case .done(let bytes):
        bytesDone += bytes
        if bytes == transfers[slot].memory.count {
          outstanding[transfers[slot].buffer] -= 1
          free.append(slot)
        } else {
          guard bytes > 0 else { throw ended(at: transfers[slot].offset) }
          transfers[slot].offset += bytes
          transfers[slot].memory.start += UInt(bytes)
          try hand(slot)
        }
      }
    }
    if let refused, taken == 0 { throw refused }
  }

  private func ended(at offset: Int) -> PinError {
    switch direction {
    case .write: .outOfSpace("write \(path) at \(offset)")
    case .read:
      PinError(
        .corruptImage, operation: "read \(path)",
        advice: "It ends at byte \(offset): it was cut off while it was read. Take another copy of the image.")
    }
  }

  private mutating func moveNow(_ offset: Int, _ memory: AddressRange) throws(PinError) {
    var (offset, rest) = (offset, memory)
    while !rest.isEmpty {
      let moved = try NamedFile.move(direction == .read, descriptor, path, at: offset, rest)
      guard moved > 0 else { throw ended(at: offset) }
      bytesDone += moved
      offset += moved
      rest.start += UInt(moved)
    }
  }
}
