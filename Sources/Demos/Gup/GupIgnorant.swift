internal import CFloor
internal import Glibc
internal import PinKit
internal import SystemPackage

/// A memory manager that has never heard of pins: memory of a memfd, filled from a file, whose first writes the kernel notes (`WP_ASYNC`).
/// All it does is right as long as everybody writes through the page table.
@safe final class GupIgnorant: GupMemory {
  let name = "without the rules"
  private let file: DemoFile
  private let memory: CInt
  private let range: AddressRange
  private let fault: Userfaultfd
  private var device: AddressRange?
  private var underWriteback = false

  init(_ file: DemoFile, pages: Int) throws {
    self.file = file
    fault = try Userfaultfd(features: [.pagefaultFlagWP, .wpUnpopulated, .wpAsync])
    let descriptor = cfloor_full_file(UInt64(pages * 4096))
    guard descriptor >= 0 else { throw GupFailure(operation: "make a memfd", number: -descriptor) }
    memory = descriptor
    let base = unsafe mmap(nil, pages * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
    guard let base = unsafe base, unsafe base != MAP_FAILED else { throw GupFailure(operation: "mmap", number: errno) }
    range = AddressRange(start: UInt(bitPattern: base), count: pages * 4096)
    try fault.register(range, for: .writeProtect)
  }

  deinit {
    unsafe munmap(UnsafeMutableRawPointer(bitPattern: range.start), range.count)
    cfloor_close(memory)
  }

  private var pageCount: Int { range.count / 4096 }
  private func addresses(_ page: Int) -> AddressRange {
    AddressRange(start: range.start + UInt(page * 4096), count: 4096)
  }

  func bringIn() throws {
    for page in 0..<pageCount { try fill(page) }
    // A first touch, so that there are entries to protect.
    _ = try bytes()
    while try fault.writeProtect(range) != .done {}
  }

  /// From the file, past the mapping, as a fault handler would.
  private func fill(_ page: Int) throws {
    let content = try file.page(page)
    let count = unsafe content.withUnsafeBytes { unsafe pwrite(memory, $0.baseAddress!, $0.count, off_t(page * 4096)) }
    guard count == 4096 else { throw GupFailure(operation: "fill a page", number: errno) }
  }

  func pin() throws -> AddressRange {
    device = range
    return range
  }
  func unpin() throws { device = nil }

  /// The pages that were written since they were protected; protects them again if asked.
  private func dirtyPages(protecting: Bool) throws -> [Int] {
    let query = PageMap.Query(
      required: .written, anyOf: .present, returned: .written, writeProtects: protecting)
    var found: [Int] = []
    try PageMap().scan(range, query) { run, _ in
      found += Int(run.start - range.start) / 4096..<Int(run.end - range.start) / 4096
    }
    return found
  }

  func writeBack(_ body: @escaping @Sendable () -> Void) throws {
    let dirty = try dirtyPages(protecting: true)
    underWriteback = !dirty.isEmpty
    body()
    for page in dirty {
      let start = unsafe UnsafeRawPointer(bitPattern: addresses(page).start)!
      guard unsafe pwrite(file.descriptor.rawValue, start, 4096, off_t(page * 4096)) == 4096 else {
        throw GupFailure(operation: "write back", number: errno)
      }
    }
    guard fdatasync(file.descriptor.rawValue) == 0 else { throw GupFailure(operation: "fdatasync", number: errno) }
    underWriteback = false
  }

  func dropAndBringIn() throws {
    let dirty = Set(try dirtyPages(protecting: false))
    for page in 0..<pageCount where !dirty.contains(page) { try fill(page) }
  }

  func state(of page: Int) throws -> GupState {
    let isDirty = try dirtyPages(protecting: false).contains(page)
    return GupState(isDirty: isDirty, isPinned: device != nil, isUnderWriteback: underWriteback)
  }

  func bytes() throws -> [UInt8] {
    unsafe [UInt8](UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: range.start), count: range.count))
  }

  func passed(_ step: GupStep) {}
  func close() {}
}

/// What the kernel refused.
struct GupFailure: Error, CustomStringConvertible {
  var operation: String
  var number: CInt
  var description: String { unsafe "\(operation): \(String(cString: strerror(number))) (errno \(number))" }
}
