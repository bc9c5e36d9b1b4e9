public import PinKit

extension VirtqueueDevice {
  /// Takes up to `limit` chains; none where there are none, or memory is protected. Notes a violation instead of a chain that has one.
  @inlinable mutating func take(_ limit: Int) throws(VirtqueueError) {
    taken.removeAll(keepingCapacity: true)
    (published, served, segmentCount) = (0, 0, 0)
    do throws(PinError) {
      let rings = rings
      try rings.withWindow { window throws(PinError) in
        let available = try window.loadAcquiring(at: layout.availableIndex)
        let waiting = Int(available &- nextAvailable)
        guard waiting <= layout.size else {
          broken = .availableIndexJumped(from: nextAvailable, to: available)
          return
        }
        // A chain more has room as long as there are not more segments than the queue has entries.
        while taken.count < min(waiting, max(1, limit)), segmentCount <= layout.size {
          let head = try window.load(at: layout.availableEntry(nextAvailable), as: UInt16.self)
          broken = try walk(window, head)
          if broken != nil { return }
          nextAvailable &+= 1
        }
      }
    } catch {
      // Chains that were taken before go on.
      try tryAgain(error)
    }
  }

  /// Reads each descriptor of a chain once and checks every field of it.
  @inlinable mutating func walk(_ window: Rings.Window, _ head: UInt16) throws(PinError) -> VirtqueueViolation? {
    guard head < layout.size else { return .headOutOfRange(head) }
    var index = head
    var total: UInt64 = 0
    var readable = 0
    let first = segmentCount
    var end = first
    while true {
      guard end - first < layout.size else { return .chainTooLong(head: head) }
      let descriptor = try window.load(at: layout.descriptor(index), as: VirtqueueDescriptor.self)
      guard !descriptor.flags.contains(.indirect) else { return .indirect(descriptor: index) }
      let length = UInt64(descriptor.length)
      guard descriptor.address <= byteCount, length <= byteCount - descriptor.address else {
        return .outsideMemory(descriptor: index, address: descriptor.address, length: descriptor.length)
      }
      if !descriptor.flags.contains(.write) {
        guard end - first == readable else { return .readableAfterWritable(descriptor: index) }
        readable += 1
      }
      total += length
      guard total <= 1 << 32 else { return .chainTooLarge(head: head) }
      unsafe segments[end] = VirtqueueSegment(offset: Int(descriptor.address), length: Int(length))
      end += 1
      guard descriptor.flags.contains(.next) else { break }
      guard descriptor.next < layout.size else {
        return .nextOutOfRange(descriptor: index, next: descriptor.next)
      }
      index = descriptor.next
    }
    taken.append(TakenChain(head: head, segments: first..<end, readable: readable))
    segmentCount = end
    return nil
  }
}
