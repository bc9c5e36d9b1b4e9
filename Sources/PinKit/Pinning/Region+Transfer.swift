public import SystemPackage

extension Region {
  /// Reads from a file into the region, without a copy in between, through short-term pins.
  ///
  /// Works however the region is tracked, also in place and by mprotect, where read(2) into it would fail with EFAULT. With `O_DIRECT`
  /// offset and bytes must be aligned as the device wants. Blocks as ``pin(_:_:)`` and pread(2) do.
  ///
  /// - Parameters:
  ///   - descriptor: Open for reading.
  ///   - offset: In the file, in bytes.
  ///   - bytes: Of the region.
  /// - Returns: How many bytes were read; fewer at the end of the file, or if something failed on the way.
  /// - Throws: ``PinError``, if nothing was read: what ``pin(_:_:)`` throws, what pread(2) refused with, `.outOfBounds`.
  public func read(
    from descriptor: FileDescriptor, offset: Int, into bytes: Range<Int>
  ) throws(PinError) -> Int {
    try transfer(descriptor.rawValue, offset, bytes, isRead: true)
  }

  /// Writes bytes of the region to a file, without a copy in between, through short-term pins; otherwise as
  /// ``read(from:offset:into:)``. What is written of bytes that change meanwhile is undefined.
  public func write(
    to descriptor: FileDescriptor, offset: Int, from bytes: Range<Int>
  ) throws(PinError) -> Int {
    try transfer(descriptor.rawValue, offset, bytes, isRead: false)
  }

  /// In pages.
  private static var chunk: Int { 1024 }

  private func transfer(
    _ file: CInt, _ offset: Int, _ bytes: Range<Int>, isRead: Bool
  ) throws(PinError) -> Int {
    let operation = isRead ? "pread" : "pwrite"
    guard bytes.lowerBound >= 0, bytes.upperBound <= addresses.count, offset >= 0 else {
      throw PinError(
        .outOfBounds, operation: "\(operation) of bytes \(bytes) at \(offset)", range: addresses,
        advice: "The region has \(addresses.count) bytes.")
    }
    var done = 0
    do throws(PinError) {
      while done < bytes.count {
        let rest = bytes.lowerBound + done..<bytes.upperBound
        let first = rest.lowerBound / pageSize
        let pages = first..<min(first + Self.chunk, (rest.upperBound + pageSize - 1) / pageSize)
        let pin = try pin(pages, isRead ? .write : [])
        let part = rest.clamped(to: pin.pages.lowerBound * pageSize..<pin.pages.upperBound * pageSize)
        let moved = try transfer(file, offset + done, part, through: pin, isRead: isRead)
        done += moved
        if moved < part.count { return done }
      }
    } catch {
      if done == 0 { throw error }
    }
    return done
  }

  /// Fewer than `bytes` at the end of the file only.
  private func transfer(
    _ file: CInt, _ offset: Int, _ bytes: Range<Int>, through pin: borrowing Pin, isRead: Bool
  ) throws(PinError) -> Int {
    var at = pin.pages.lowerBound * pageSize
    var done = 0
    var failure = 0
    pin.forEachStretch { stretch in
      var part = bytes.clamped(to: at..<at + stretch.count)
      let origin = stretch.start - UInt(at)
      at += stretch.count
      while !part.isEmpty {
        let memory = AddressRange(start: origin + UInt(part.lowerBound), end: origin + UInt(part.upperBound))
        let moved = move(memory, file, offset + (part.lowerBound - bytes.lowerBound), isRead: isRead)
        if moved <= 0 {
          failure = moved
          return false
        }
        done += moved
        part = part.lowerBound + moved..<part.upperBound
      }
      return true
    }
    if failure < 0, done == 0 {
      if failure == -9 {
        throw PinError(
          .invalidArgument, operation: isRead ? "pread" : "pwrite", errno: .badFileDescriptor,
          advice: "The descriptor is not open for \(isRead ? "reading" : "writing").")
      }
      throw .kernel(failure, isRead ? "pread" : "pwrite", addressesUnchecked(of: pin.pages))
    }
    return done
  }

  /// Memory that has no other mapping than the region's may have been protected again since it was pinned: then the system call is refused
  /// where faults are the thread's own to take. It takes them, and tries again.
  private func move(_ memory: AddressRange, _ file: CInt, _ offset: Int, isRead: Bool) -> Int {
    var deadline = Deadline(seconds: space.configuration.patience)
    while true {
      let moved = Memory.transfer(memory, file: file, offset: offset, isRead: isRead)
      guard moved == -14, isRead, frames == nil, !deadline.isOver() else { return moved }
      for page in pages(touching: memory) {
        do throws(PinError) { try touch(page) } catch { return moved }
      }
    }
  }
}
