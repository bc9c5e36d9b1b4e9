public import PinKit

/// A region's rings by a direct mapping: a few nanoseconds for a batch, whatever it has of fields, and no lock.
///
/// What changes the rings' pages waits for the batch that is under way; the next one finds the mapping down, and puts it up again when
/// the change is over.
public struct DirectRingMemory: RingMemory {
  public let mapping: DirectMapping
  /// Where the window begins, in bytes of the region.
  private let base: Int

  /// Maps the pages that `layout` lies in.
  ///
  /// - Throws: ``PinKit/PinError``, as `DirectMapping`.
  public init(_ region: Region, _ layout: VirtqueueLayout) throws(PinError) {
    let bytes = layout.bytes
    let pages = bytes.lowerBound / region.pageSize..<(bytes.upperBound + region.pageSize - 1) / region.pageSize
    mapping = try DirectMapping(region, pages: pages)
    base = pages.lowerBound * region.pageSize
  }

  @inlinable public func withWindow<Result>(
    _ body: (BytesWindow) throws(PinError) -> Result
  ) throws(PinError) -> Result {
    do {
      return unsafe try mapping.withBytes { unsafe try body(BytesWindow($0, at: start)) }
    } catch let error as PinError {
      throw error
    } catch {
      fatalError("a window throws nothing else: \(error)")
    }
  }

  @usableFromInline var start: Int { base }
}
