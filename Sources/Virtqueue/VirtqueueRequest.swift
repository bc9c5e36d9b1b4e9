public import PinKit

/// A part of a chain, checked: it lies in the buffers' memory.
@usableFromInline struct VirtqueueSegment: BitwiseCopyable {
  @usableFromInline let offset: Int
  @usableFromInline let length: Int

  @inlinable init(offset: Int, length: Int) {
    self.offset = offset
    self.length = length
  }
}

/// A chain that a device serves: bytes to read, then bytes to write, each in the order of the chain.
///
/// Lives as long as the call that was given it: it can be neither made nor copied.
@safe public struct VirtqueueRequest<Buffers: BufferMemory>: ~Copyable {
  /// The head of the chain, as the driver knows it.
  public let id: UInt16
  @usableFromInline let buffers: UnsafePointer<Buffers>
  @usableFromInline let segments: UnsafeBufferPointer<VirtqueueSegment>
  @usableFromInline let readable: Int
  /// Where reading and writing go on: a segment, and a byte of it.
  @usableFromInline var reading = (segment: 0, byte: 0)
  @usableFromInline var writing: (segment: Int, byte: Int)
  /// How many bytes were written.
  public internal(set) var written = 0

  @inlinable init(
    id: UInt16, readable: Int, buffers: UnsafePointer<Buffers>, segments: UnsafeBufferPointer<VirtqueueSegment>
  ) {
    self.id = id
    self.readable = readable
    unsafe self.buffers = buffers
    unsafe self.segments = segments
    writing = (readable, 0)
  }

  /// How many bytes of the chain can be read, in all.
  public var readableByteCount: Int { byteCount(0..<readable) }
  /// How many bytes of the chain can be written, in all.
  public var writableByteCount: Int { byteCount(readable..<(unsafe segments.count)) }
  /// How many buffers the chain has.
  public var bufferCount: Int { unsafe segments.count }

  private func byteCount(_ range: Range<Int>) -> Int {
    var count = 0
    for index in range { count += unsafe segments[index].length }
    return count
  }

  /// Reads on from where the last call ended, until `target` is full or the chain has no more.
  ///
  /// - Returns: How many bytes.
  /// - Throws: ``PinKit/PinError``, for the device to deal with: let it through.
  public mutating func read(into target: inout MutableSpan<UInt8>) throws(PinError) -> Int {
    var place = reading
    defer { reading = place }
    return unsafe try target.withUnsafeMutableBytes { bytes throws(PinError) in
      try transfer(bytes.count, at: &place, end: readable) { done, offset, count throws(PinError) in
        unsafe try buffers.pointee.copy(
          fromByteOffset: offset, into: UnsafeMutableRawBufferPointer(rebasing: bytes[done..<done + count]))
      }
    }
  }

  /// Writes on from where the last call ended, until `source` or the chain has no more.
  ///
  /// - Returns: How many bytes.
  /// - Throws: As ``read(into:)``.
  public mutating func write(_ source: Span<UInt8>) throws(PinError) -> Int {
    var place = writing
    defer { writing = place }
    let count = unsafe try source.withUnsafeBytes { bytes throws(PinError) in
      unsafe try transfer(bytes.count, at: &place, end: segments.count) { done, offset, count throws(PinError) in
        unsafe try buffers.pointee.copy(UnsafeRawBufferPointer(rebasing: bytes[done..<done + count]), toByteOffset: offset)
      }
    }
    written += count
    return count
  }

  /// Goes through up to `count` bytes of the segments before `end`.
  private func transfer(
    _ count: Int, at place: inout (segment: Int, byte: Int), end: Int,
    _ body: (_ done: Int, _ offset: Int, _ count: Int) throws(PinError) -> Void
  ) throws(PinError) -> Int {
    var done = 0
    while done < count, place.segment < end {
      let segment = unsafe segments[place.segment]
      let step = min(count - done, segment.length - place.byte)
      if step > 0 { try body(done, segment.offset + place.byte, step) }
      done += step
      place.byte += step
      if place.byte == segment.length { place = (place.segment + 1, 0) }
    }
    return done
  }
}
