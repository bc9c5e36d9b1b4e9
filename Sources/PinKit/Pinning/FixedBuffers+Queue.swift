public import SystemPackage

extension FixedBuffers {
  /// How many operations were queued whose completions have not been taken.
  public var inFlight: Int { unsafe registration.ring.inFlight }

  /// Queues a read (`READ_FIXED`) from the file's byte `offset` on into a part of a buffer.
  ///
  /// - Parameters:
  ///   - descriptor: Open for reading; with `O_DIRECT` offsets and lengths must be aligned as the device wants.
  ///   - offset: In the file, in bytes.
  ///   - buffer: Its number: the index in ``ranges``.
  ///   - bytes: In the buffer.
  ///   - userData: Comes back with the completion.
  /// - Throws: ``PinError`` `.outOfBounds`.
  public mutating func queueRead(
    from descriptor: FileDescriptor, at offset: Int, into buffer: Int, bytes: Range<Int>, userData: UInt64 = 0
  ) throws(PinError) -> SubmissionRing.QueueOutcome {
    let part = try part(of: buffer, bytes, at: offset)
    return unsafe registration.ring.queueReadFixed(
      from: descriptor.rawValue, at: offset, into: part, buffer: buffer, userData: userData)
  }

  /// Queues a write (`WRITE_FIXED`) of a part of a buffer to the file's byte `offset` on; otherwise as
  /// ``queueRead(from:at:into:bytes:userData:)``.
  public mutating func queueWrite(
    to descriptor: FileDescriptor, at offset: Int, from buffer: Int, bytes: Range<Int>, userData: UInt64 = 0
  ) throws(PinError) -> SubmissionRing.QueueOutcome {
    let part = try part(of: buffer, bytes, at: offset)
    return unsafe registration.ring.queueWriteFixed(
      to: descriptor.rawValue, at: offset, from: part, buffer: buffer, userData: userData)
  }

  /// Hands what is queued to the kernel and blocks until `count` completions can be taken, or all if fewer are in flight.
  @discardableResult
  public mutating func submit(waitingFor count: Int = 0) throws(PinError) -> Int {
    try unsafe registration.ring.submit(waitingFor: count)
  }

  /// Takes one completion without waiting; `nil` if there is none. A short transfer is not an error.
  public mutating func nextCompletion() -> SubmissionRing.Completion? { unsafe registration.ring.nextCompletion() }

  private func part(of buffer: Int, _ bytes: Range<Int>, at offset: Int) throws(PinError) -> AddressRange {
    guard memory.indices.contains(buffer), bytes.lowerBound >= 0, bytes.upperBound <= memory[buffer].count, offset >= 0
    else {
      throw PinError(
        .outOfBounds, operation: "bytes \(bytes) of fixed buffer \(buffer), at \(offset) of a file", range: region.addresses,
        advice: "There are \(memory.count) buffers, of \(memory.map(\.count)) bytes.")
    }
    let start = memory[buffer].start
    return AddressRange(start: start + UInt(bytes.lowerBound), end: start + UInt(bytes.upperBound))
  }
}
