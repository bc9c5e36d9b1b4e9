internal import Synchronization

/// A run of pages with the descriptor that it is registered with.
struct SlicePart: Sendable {
  let descriptor: CInt
  let range: AddressRange

  func cut(at address: UInt) -> (head: SlicePart, rest: SlicePart) {
    (
      SlicePart(descriptor: descriptor, range: AddressRange(start: range.start, end: address)),
      SlicePart(descriptor: descriptor, range: AddressRange(start: address, end: range.end))
    )
  }
}

/// The userfaultfds of a region, a slice each, and the calls on them: what concerns several slices is done one after the other.
extension FaultDomain {
  /// How many slices there are.
  var sliceCount: Int { (table.pageCount - 1) >> sliceShift.load(ordering: .relaxed) + 1 }

  @inline(__always) func slice(of page: Int) -> Int { page >> sliceShift.load(ordering: .relaxed) }

  /// The pages of a slice.
  @inline(__always) func pages(ofSlice slice: Int) -> Range<Int> {
    let shift = sliceShift.load(ordering: .relaxed)
    return slice << shift..<min(table.pageCount, (slice + 1) << shift)
  }

  /// The pages that one call can change along with `page`, all or none: those of its slice whose frames were made to lie in one file.
  @inline(__always) func together(with page: Int) -> Range<Int> {
    let slice = pages(ofSlice: slice(of: page))
    return withFrames { frames in unsafe slice.clamped(to: frames.base.pointee.part(of: page)) } ?? slice
  }

  @inline(__always) func addresses(ofSlice slice: Int) -> AddressRange { addresses(of: pages(ofSlice: slice)) }

  /// Whether there is a userfaultfd.
  @inline(__always) var isConnected: Bool { channels[0].descriptor.load(ordering: .acquiring) >= 0 }

  /// Runs `body` with the part of `range` in each slice, in order, until one is not done.
  @inline(__always) private func forEachSlice(
    _ range: AddressRange, _ body: (CInt, AddressRange) -> UffdResult
  ) -> UffdResult {
    var start = range.start
    while true {
      let slice = slice(of: page(at: start))
      let end = min(range.end, addresses(ofSlice: slice).end)
      let result = channels[slice].call { body($0, AddressRange(start: start, end: end)) }
      if result != .done || end == range.end { return result }
      start = end
    }
  }

  /// The same with what lies in the first slice of `range` only; a call that says how far it came.
  @inline(__always) private func inFirstSlice(
    _ range: AddressRange, _ body: (CInt, AddressRange) -> (UffdResult, bytes: Int)
  ) -> (UffdResult, bytes: Int) {
    let slice = slice(of: page(at: range.start))
    let part = AddressRange(start: range.start, end: min(range.end, addresses(ofSlice: slice).end))
    var bytes = 0
    let result = channels[slice].call {
      let (result, count) = body($0, part)
      bytes = count
      return result
    }
    return (result, bytes)
  }

  // MARK: The calls

  /// Lets writes through. All of `range`, or nothing that the caller may rely on; of one slice, asked to try again, nothing.
  @inline(__always) func unprotect(_ range: AddressRange, wake: Bool) -> UffdResult {
    forEachSlice(range) { Uffd.unprotect($0, $1, wake: wake) }
  }

  @inline(__always) func protect(_ range: AddressRange) -> UffdResult { forEachSlice(range) { Uffd.protect($0, $1) } }

  /// ``Uffd/mapExisting(_:_:protected:)``, protected.
  @inline(__always) func mapExisting(_ range: AddressRange) -> (UffdResult, bytes: Int) {
    inFirstSlice(range) { Uffd.mapExisting($0, $1, protected: true) }
  }

  /// ``Uffd/copy(_:_:to:)``.
  @inline(__always) func copy(_ source: UInt, to range: AddressRange) -> (UffdResult, bytes: Int) {
    inFirstSlice(range) { Uffd.copy($0, source, to: $1) }
  }

  @discardableResult @inline(__always) func wake(_ range: AddressRange) -> UffdResult {
    forEachSlice(range) { Uffd.wake($0, $1) }
  }

  func register(_ range: AddressRange, _ mode: Userfaultfd.RegisterMode) -> UffdResult {
    forEachSlice(range) { Uffd.register($0, $1, mode) }
  }

  /// Registers memory that is to move to `page`, and on from there within its slice.
  func register(_ range: AddressRange, _ mode: Userfaultfd.RegisterMode, movingTo page: Int) -> UffdResult {
    channels[slice(of: page)].call { Uffd.register($0, range, mode) }
  }

  // MARK: The descriptors

  /// Those in the readers' epoll set. Another region may have a number by now that was closed.
  var descriptors: [CInt] {
    (0..<sliceCount).compactMap { slice in
      let descriptor = channels[slice].listening
      return channels[slice].isOwn(descriptor) ? descriptor : nil
    }
  }

  /// Whether there is a userfaultfd to read from for the slice: otherwise the region has failed.
  func hasDescriptor(slice: Int) -> Bool {
    if channels[slice].hasDescriptor() { return true }
    fail(.descriptorClosed, errno: UffdResult.badDescriptor)
    return false
  }

  /// Whether `pages`, which are some, are registered at this moment, if they ever were, and the region has not failed.
  func isWatched(_ pages: Range<Int>) -> Bool {
    if !useSpareDescriptors(pages) { fail(.descriptorClosed, errno: UffdResult.badDescriptor) }
    return failure.load(ordering: .acquiring) == 0
  }

  /// Takes the spare of every slice of `pages` whose descriptor turns out closed; false if there is none.
  func useSpareDescriptors(_ pages: Range<Int>) -> Bool {
    for slice in slice(of: pages.lowerBound)...slice(of: pages.upperBound - 1) where !channels[slice].hasDescriptor() {
      return false
    }
    return true
  }

  /// `ranges`, cut where slices end. Allocates: not for the fault path.
  func parts(of ranges: [AddressRange]) -> [SlicePart] {
    var parts: [SlicePart] = []
    for range in ranges {
      _ = forEachSlice(range) { descriptor, part in
        parts.append(SlicePart(descriptor: descriptor, range: part))
        return .done
      }
    }
    return parts
  }
}
