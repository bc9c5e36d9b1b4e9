public import PinKit

/// The side of a queue that serves the chains that a driver makes available.
///
/// The driver is not trusted. A descriptor is read once, checked, and never looked at again; a chain that breaks the protocol
/// ends the queue with ``VirtqueueError/needsReset(_:)``, after the chains before it were served; no byte outside
/// the buffers' memory is ever touched. One thread at a time uses it.
///
/// Memory that is protected for the moment is no error: what could not be done is done by a later call, and every chain goes into the used
/// ring exactly once.
@safe public struct VirtqueueDevice<Rings: RingMemory, Buffers: BufferMemory>: ~Copyable {
  public let layout: VirtqueueLayout
  @usableFromInline let rings: Rings
  /// In a place of its own: a request points to it, since counting references would cost more than serving a chain.
  @usableFromInline let buffers: UnsafeMutablePointer<Buffers>
  @usableFromInline let byteCount: UInt64
  /// Of the chains that were taken, one after the other. Room for two chains of the greatest length.
  @usableFromInline let segments: UnsafeMutablePointer<VirtqueueSegment>
  @usableFromInline var segmentCount = 0
  /// The chains that were taken last: published in the used ring, then served, then waiting.
  @usableFromInline var taken: [TakenChain] = []
  @usableFromInline var published = 0
  @usableFromInline var served = 0
  @usableFromInline var nextAvailable: UInt16 = 0
  @usableFromInline var nextUsed: UInt16 = 0
  @usableFromInline var broken: VirtqueueViolation?
  /// Calls that found memory protected.
  public private(set) var retries = 0
  /// How the driver broke the protocol, if it did; from then on no chain is taken.
  public var violation: VirtqueueViolation? { broken }

  @usableFromInline struct TakenChain {
    @usableFromInline var head: UInt16
    @usableFromInline var segments: Range<Int>
    /// How many of them can be read; the rest can be written.
    @usableFromInline var readable: Int
    @usableFromInline var written: UInt32 = 0

    @inlinable init(head: UInt16, segments: Range<Int>, readable: Int) {
      self.head = head
      self.segments = segments
      self.readable = readable
    }
  }

  /// Begins with the first chain that was ever made available.
  ///
  /// - Parameters:
  ///   - layout: Where the rings lie.
  ///   - rings: What they lie in.
  ///   - buffers: What descriptors' addresses point into.
  public init(_ layout: VirtqueueLayout, _ rings: Rings, buffers: Buffers) {
    self.layout = layout
    self.rings = rings
    unsafe self.buffers = .allocate(capacity: 1)
    unsafe self.buffers.initialize(to: buffers)
    byteCount = UInt64(max(0, buffers.byteCount))
    unsafe segments = .allocate(capacity: 2 * layout.size)
  }

  deinit {
    unsafe buffers.deinitialize(count: 1)
    unsafe buffers.deallocate()
    // Segments are trivial.
    unsafe segments.deallocate()
  }

  /// Serves chains that are available, in their order, and puts them into the used ring, all by one step. Does not block.
  ///
  /// - Parameters:
  ///   - limit: At most so many, at least one. Rings are accessed once for all of them.
  ///   - body: Serves one chain. If it throws, it is called again for the same chain by the next call: it should change nothing of its
  ///     own before the last read or write of its request.
  /// - Returns: How many chains the driver got back. 0: there is none, or memory is protected; try again later.
  /// - Throws: ``VirtqueueError``: `.needsReset`, once all chains before the one that broke the protocol are used; `.memory` with
  ///   whatever `body` throws other than `.accessDenied`.
  @inlinable public mutating func serve(
    limit: Int = 16, _ body: (inout VirtqueueRequest<Buffers>) throws(PinError) -> Void
  ) throws(VirtqueueError) -> Int {
    if published == taken.count {
      if let violation = broken { throw .needsReset(violation) }
      try take(limit)
      if taken.isEmpty {
        if let violation = broken { throw .needsReset(violation) }
        return 0
      }
    }
    var failure: PinError?
    serving: while served < taken.count {
      let chain = taken[served]
      var request = unsafe VirtqueueRequest(
        id: chain.head, readable: chain.readable, buffers: UnsafePointer(buffers),
        segments: UnsafeBufferPointer(start: segments + chain.segments.lowerBound, count: chain.segments.count))
      do throws(PinError) { try body(&request) } catch {
        failure = error
        break serving
      }
      taken[served].written = UInt32(truncatingIfNeeded: request.written)
      served += 1
    }
    let count = try publish()
    if let failure { try tryAgain(failure) }
    return count
  }

  /// Puts what was served into the used ring.
  @inlinable mutating func publish() throws(VirtqueueError) -> Int {
    let (layout, chains, start, first, end) = (layout, taken, nextUsed, published, served)
    guard first < end else { return 0 }
    do throws(PinError) {
      try rings.withWindow { window throws(PinError) in
        var number = start
        for chain in chains[first..<end] {
          try window.store(
            VirtqueueUsedElement(id: UInt32(chain.head), length: chain.written), at: layout.usedEntry(number))
          number &+= 1
        }
        // Whoever sees the index sees the elements, and what was written to the buffers.
        try window.storeReleasing(number, at: layout.usedIndex)
      }
    } catch {
      // The driver has seen nothing of it.
      try tryAgain(error)
      return 0
    }
    nextUsed &+= UInt16(truncatingIfNeeded: end - first)
    published = end
    return end - first
  }

  /// Throws what trying again does not help against.
  @usableFromInline mutating func tryAgain(_ error: PinError) throws(VirtqueueError) {
    guard error.code == .accessDenied else { throw .memory(error) }
    retries += 1
  }
}
