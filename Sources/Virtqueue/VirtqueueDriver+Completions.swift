internal import PinKit

extension VirtqueueDriver {
  /// Takes a chain back that the device has used. Does not block.
  ///
  /// - Returns: `nil` where there is none, or ring memory is protected.
  /// - Throws: ``VirtqueueError``: `.needsReset` where the device broke the protocol, `.memory`.
  @inlinable public mutating func takeCompletion() throws(VirtqueueError) -> VirtqueueCompletion? {
    if let violation = broken { throw .needsReset(violation) }
    let (layout, number) = (layout, nextUsed)
    var seen = seenUsed
    let outstanding = posted
    let element: VirtqueueUsedElement?
    do throws(PinError) {
      element = try rings.withWindow { window throws(PinError) in
        if seen == number { seen = try window.loadAcquiring(at: layout.usedIndex) }
        guard seen != number, Int(seen &- number) <= outstanding else { return nil }
        return try window.load(at: layout.usedEntry(number), as: VirtqueueUsedElement.self)
      }
    } catch {
      try tryAgain(error)
      return nil
    }
    guard let element else {
      if seen != number { throw fail(.usedIndexJumped(from: number, to: seen)) }
      return nil
    }
    seenUsed = seen
    return try complete(element)
  }

  @inlinable mutating func complete(_ element: VirtqueueUsedElement) throws(VirtqueueError) -> VirtqueueCompletion {
    guard element.id < layout.size, chains[Int(element.id)].descriptors > 0 else {
      throw fail(.usedUnknown(id: element.id))
    }
    let id = UInt16(element.id)
    let chain = chains[Int(id)]
    guard Int(element.length) <= chain.writableBytes else {
      throw fail(.usedTooLong(id: id, length: element.length))
    }
    nextUsed &+= 1
    posted -= 1
    chains[Int(id)].descriptors = 0
    var last = id
    for _ in 1..<chain.descriptors { last = following[Int(last)] }
    following[Int(last)] = firstFree
    firstFree = id
    free += chain.descriptors
    return VirtqueueCompletion(id: id, length: Int(element.length))
  }

  @usableFromInline mutating func fail(_ violation: VirtqueueViolation) -> VirtqueueError {
    broken = violation
    return .needsReset(violation)
  }
}
