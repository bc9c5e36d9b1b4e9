internal import PinKit

/// An input is what a store says of itself, where a region begins in it, and how it answers.
enum StoreTarget {
  private final class Store: PageStore, Sendable {
    let geometry: StoreGeometry
    private let answers: [UInt8]
    init(_ geometry: StoreGeometry, _ answers: [UInt8]) {
      self.geometry = geometry
      self.answers = answers
    }

    private func answer(_ page: Int, _ bit: UInt8) throws(PinError) {
      guard !answers.isEmpty, answers[page % answers.count] & bit != 0 else { return }
      throw PinError(.inputOutput, operation: "a store", range: nil)
    }
    func read(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) throws(PinError) {
      try answer(pages.lowerBound, 1)
      for (index, page) in pages.enumerated() {
        unsafe UnsafeMutableRawBufferPointer(rebasing: memory[index * 4096..<(index + 1) * 4096]).initializeMemory(
          as: UInt8.self, repeating: UInt8(truncatingIfNeeded: page))
      }
    }
    func readNow(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) -> Bool {
      guard !answers.isEmpty, answers[pages.lowerBound % answers.count] & 8 != 0 else { return false }
      return (try? unsafe read(pages, into: memory)) != nil
    }
    func write(_ transfers: [PageTransfer]) -> [PinError?] {
      let errors = transfers.map { transfer -> PinError? in
        do throws(PinError) { try answer(transfer.pages.lowerBound, 2) } catch { return error }
        return nil
      }
      // As many answers as there were transfers, or not.
      return answers.first.map { $0 & 64 != 0 } ?? false ? Array(errors.dropLast()) : errors
    }
    func pageMakeWritable(_ pages: Range<Int>) throws(PinError) { try answer(pages.lowerBound, 4) }
    func flush() throws(PinError) { try answer(0, 16) }
  }

  static func run(_ input: [UInt8]) throws -> String? {
    var reader = InputReader(input)
    let flags = reader.byte()
    let geometry = StoreGeometry(
      byteCount: reader.number(Int.self), atomicUnit: reader.number(Int.self), isReadOnly: flags & 1 != 0,
      needsDirtyTracking: flags & 2 == 0)
    let pages = reader.number(Int.self)
    // What the machine could map, and would take long over.
    if pages > 64, pages < 1 << 50 { return nil }
    let answers = Array(input.dropFirst(reader.offset))
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = .failRegion
    let space = try AddressSpace(configuration: configuration)
    defer { try? space.close() }
    let region: Region
    do throws(PinError) { region = try space.map(.file(Store(geometry, answers)), pages: pages) } catch { return nil }
    guard pages >= 1, geometry.pageCount >= 1 else { return "\(pages) pages of a store of \(geometry.byteCount) bytes" }
    var wrong: String?
    for page in Set([0, pages / 2, pages - 1]) {
      guard let found = try? region.load(fromByteOffset: page * 4096, as: UInt8.self) else { continue }
      if page < geometry.pageCount, found != UInt8(truncatingIfNeeded: page) { wrong = "page \(page) holds \(found)" }
      try? region.store(UInt8(1), toByteOffset: page * 4096 + 1)
    }
    try? region.flush()
    _ = try? region.reclaim(0..<pages)
    return wrong
  }

  static func seeds() -> [[UInt8]] {
    func input(_ flags: UInt8, _ byteCount: Int, _ unit: Int, _ pages: Int, _ answers: [UInt8] = []) -> [UInt8] {
      [flags]
        + [byteCount, unit, pages].flatMap { number in
          stride(from: 0, to: 64, by: 8).map { UInt8(truncatingIfNeeded: number >> $0) }
        } + answers
    }
    return [
      input(0, 64 << 10, 4096, 16), input(1, 64 << 10, 512, 16), input(2, 5000, 4096, 2), input(0, .max, 1, .max),
      input(0, -1, 0, -1), input(0, 64 << 10, 4096, 16, [0, 1, 2, 4, 8, 16]), input(0, 4096, 4096, 64, [64]),
    ]
  }
}
