internal import SystemPackage

/// A batch of transfers on its way to a file.
///
/// Transfers are cut into pieces, and pieces that are neighbours in the file joined to operations. An operation that fails is taken
/// apart, and each of its pieces tried alone: so a failure is only that of the transfers it belongs to. All of it may be done
/// twice: the same bytes go to the same place.
struct StoreWrites: ~Copyable {
  struct Operation {
    /// In the file, in bytes.
    var offset: Int
    /// What is left, at `offset`; its memory is the vector of the same number.
    var pieces: Range<Int>
    var isDirect: Bool
  }

  let store: FileStore
  private(set) var outcomes: [PinError?]
  private(set) var exceededSize = false
  private(set) var vectors: MemoryVectors
  /// For each piece.
  private(set) var transferOf: [Int] = []
  private(set) var operations: [Operation] = []
  /// Of the last operation, while they are made.
  private var lastBytes = 0
  /// Operations that have to be handed to the kernel, the next one last.
  private(set) var waiting: [Int] = []

  /// In bytes, of one operation; more in flight beats larger ones.
  static let largest = 1 << 20
  private static let mostPieces = 256

  init(_ store: FileStore, _ transfers: [PageTransfer]) {
    self.store = store
    outcomes = Array(repeating: nil, count: transfers.count)
    let limit = store.options.writesWholePages ? Memory.pageSize : Self.largest
    for (index, transfer) in transfers.enumerated() {
      do throws(PinError) { try store.check(transfer.pages, transfer.memory.count) } catch { outcomes[index] = error }
    }
    // Each transfer may be cut once more, at the file's last page.
    vectors = MemoryVectors(
      capacity: zip(transfers, outcomes).reduce(0) { $1.1 == nil ? $0 + $1.0.memory.count / limit + 2 : $0 })
    var order = Array(transfers.indices)
    let isSorted = zip(transfers, transfers.dropFirst()).allSatisfy { $0.pages.lowerBound <= $1.pages.lowerBound }
    if !isSorted { order.sort { transfers[$0].pages.lowerBound < transfers[$1].pages.lowerBound } }
    for index in order where outcomes[index] == nil { cut(transfers[index], index, limit) }
    waiting = Array(operations.indices.reversed())
  }

  var count: Int { operations.count }

  private mutating func cut(_ transfer: PageTransfer, _ index: Int, _ limit: Int) {
    let size = store.geometry.byteCount
    let end = min(transfer.pages.upperBound * Memory.pageSize, size)
    // A last page that is not made of whole sectors goes through the page cache.
    let directEnd =
      store.isDirect ? (size.isMultiple(of: store.sector) ? size : size / Memory.pageSize * Memory.pageSize) : 0
    var offset = transfer.pages.lowerBound * Memory.pageSize
    var address = transfer.memory.start
    while offset < end {
      let isDirect = offset < directEnd
      let count = min(limit, (isDirect ? min(end, directEnd) : end) - offset)
      append(index, offset, address, count, isDirect, limit)
      offset += count
      address += UInt(count)
    }
  }

  private mutating func append(
    _ transfer: Int, _ offset: Int, _ address: UInt, _ count: Int, _ isDirect: Bool, _ limit: Int
  ) {
    let piece = vectors.count
    vectors.append(address, count: count)
    transferOf.append(transfer)
    if let last = operations.last, last.isDirect == isDirect, last.pieces.count < Self.mostPieces {
      if last.offset + lastBytes == offset, lastBytes + count <= limit {
        operations[operations.count - 1].pieces = last.pieces.lowerBound..<piece + 1
        lastBytes += count
        return
      }
    }
    operations.append(Operation(offset: offset, pieces: piece..<piece + 1, isDirect: isDirect))
    lastBytes = count
  }

  mutating func failAll(_ error: PinError) {
    for index in outcomes.indices { outcomes[index] = outcomes[index] ?? error }
    waiting = []
  }

  func descriptor(of operation: Operation) -> CInt { operation.isDirect ? store.file.direct : store.file.writer }
  /// Both numbers, after a look at each: for as many operations as are handed over together.
  func descriptors() -> (direct: CInt, plain: CInt) { (store.file.direct, store.file.writer) }

  mutating func next() -> Int? { waiting.popLast() }
  mutating func again(_ index: Int) { waiting.append(index) }
}

extension StoreWrites {
  /// Takes what the kernel said of an operation: bytes, or a negative errno.
  mutating func finish(_ index: Int, _ result: Int) {
    if result > 0 { return advance(index, result) }
    switch -result {
    case Int(Errno.interrupted.rawValue), Int(Errno.resourceTemporarilyUnavailable.rawValue): return again(index)
    case Int(Errno.invalidArgument.rawValue)
    where operations[index].isDirect && store.options.direct != .required && !store.options.writesWholePages:
      // A file system that opens files for direct I/O and then does not like this one.
      operations[index].isDirect = false
      return again(index)
    default: break
    }
    let operation = operations[index]
    guard operation.pieces.count == 1 else { return takeApart(operation) }
    if -result == Int(Errno.fileTooLarge.rawValue) { exceededSize = true }
    let transfer = transferOf[operation.pieces.lowerBound]
    let words = "write \(store.file.name) at \(operation.offset)"
    // A write of nothing that is no error has found no room.
    let error = PinError.store(result == 0 ? -Int(Errno.noSpace.rawValue) : result, words)
    outcomes[transfer] = outcomes[transfer] ?? error
  }

  private mutating func advance(_ index: Int, _ bytes: Int) {
    var rest = bytes
    while let first = operations[index].pieces.first, rest >= vectors.byteCount(first) {
      rest -= vectors.byteCount(first)
      operations[index].pieces = first + 1..<operations[index].pieces.upperBound
    }
    operations[index].offset += bytes
    guard let first = operations[index].pieces.first else { return }
    if rest > 0 { vectors.trim(first, by: rest) }
    // Direct I/O that ended within a sector goes on through the page cache.
    if !operations[index].offset.isMultiple(of: store.sector) { operations[index].isDirect = false }
    again(index)
  }

  private mutating func takeApart(_ operation: Operation) {
    var offset = operation.offset
    for piece in operation.pieces {
      operations.append(Operation(offset: offset, pieces: piece..<piece + 1, isDirect: operation.isDirect))
      again(operations.count - 1)
      offset += vectors.byteCount(piece)
    }
  }
}
