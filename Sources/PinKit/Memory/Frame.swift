/// A frame of a pool, by name: it says nothing of whether anybody has the frame.
public struct Frame: Sendable, Hashable, CustomStringConvertible {
  /// Counted in the pool, over all of its files.
  public let number: Int
  public var description: String { "frame \(number)" }
}

/// What a frame's metadata says, for tools and tests; every field may have changed when it is read.
public struct FrameState: Sendable, Hashable {
  public let frame: Frame
  public let counts: FrameCounts
  public let isLocked: Bool
  /// Of a page of a store: it has changed since it was written back. Its region and its pins know that; a ``FrameReference`` says false.
  public internal(set) var isDirty: Bool
  public internal(set) var isUnderWriteback: Bool
  public let isSealed: Bool
}

/// A reference to a frame: its memory stays while the value lives, whatever becomes of the pages that map it.
///
/// It does not keep anyone from writing, and nobody waits for it: a writer whose policy counts references may copy because of it
/// (W4). Noncopyable; dropping it lets go.
@safe public struct FrameReference: ~Copyable, @unchecked Sendable {  // the extent lives as long as the pool
  public let frame: Frame
  let pool: FramePool
  let extent: Extent.Pointer
  let index: Int
  private let amount: Int

  /// Takes over references that were counted already.
  init(pool: FramePool, extent: Extent.Pointer, index: Int, amount: Int = 1) {
    self.pool = pool
    unsafe self.extent = extent
    self.index = index
    self.amount = amount
    frame = Frame(number: unsafe extent.pointee.firstFrame + index)
  }

  deinit {
    // A child of fork() has a copy of the value, and none of the counts.
    guard pool.isOfThisProcess else { return }
    unsafe extent.pointee.put(index, amount)
    pool.noteDead()
  }

  public var state: FrameState { unsafe Self.state(of: extent, index) }

  static func state(of extent: Extent.Pointer, _ index: Int) -> FrameState {
    let flags = unsafe extent.pointee.word(index).flags
    return unsafe FrameState(
      frame: Frame(number: extent.pointee.firstFrame + index), counts: extent.pointee.counts(index),
      isLocked: flags.contains(.locked), isDirty: flags.contains(.dirty), isUnderWriteback: flags.contains(.writeback),
      isSealed: flags.contains(.sealed))
  }

  /// Freezes the frame's references if they are exactly `count`, this one and all mappings included: one atomic step (P5). Until
  /// ``unfreeze()`` nobody gets a reference, and whoever looks the frame up spins (S3).
  public func freeze(expecting count: Int) -> Bool { unsafe extent.pointee.freeze(index, expecting: count) }

  /// Ends a ``freeze(expecting:)`` that returned true.
  public func unfreeze() { unsafe extent.pointee.unfreeze(index) }

  /// Runs `body` with the page lock held (``LockRank/page``), waiting for it at most `patience` seconds. With 0 it tries, and may be called
  /// under any lock. `file` and `line` are for reports of ``LockOrder``.
  ///
  /// - Throws: ``PinError`` `.timedOut`, and what `body` throws.
  public func withPageLock<Result>(
    patience: Double = 1, file: StaticString = #fileID, line: UInt = #line, _ body: () throws -> Result
  ) throws -> Result {
    let place = LockPlace(file: file, line: line)
    guard unsafe extent.pointee.lock(index, patience: Kernel.nanoseconds(patience), place) else {
      throw PinError(
        .timedOut, operation: "lock \(frame)", advice: "Whoever has locked it keeps it longer than \(patience) s.")
    }
    defer { unsafe extent.pointee.unlock(index) }
    return try body()
  }

  /// Copies the frame's bytes through the pool's own mapping of it.
  ///
  /// - Throws: ``PinError`` `.invalidArgument` unless `target` is one page; `.outOfMemory`.
  public func copy(into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    guard target.count == Memory.pageSize else {
      throw PinError(.invalidArgument, operation: "copy of \(frame)", advice: "A frame has \(Memory.pageSize) bytes.")
    }
    unsafe target.copyMemory(
      from: UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: try directAddress()), count: Memory.pageSize))
  }

  /// Where the pool maps it.
  func directAddress() throws(PinError) -> UInt { unsafe try pool.directMap(extent) + UInt(index * Memory.pageSize) }
}
