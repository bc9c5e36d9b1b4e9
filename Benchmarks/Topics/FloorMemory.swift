internal import CFloor
import PinKit

/// Memory of the kernel floor, which PinKit adopts for its rounds: both sides write the very same pages.
final class FloorMemory: Sendable {
  let base: UInt64
  let pages: Int

  /// Private anonymous memory, or that of a memfd; every page has been written once unless `isPopulated` is false.
  init(pages: Int, huge: Bool = false, isPopulated: Bool = true, isShared: Bool = false) {
    let map = isShared ? cfloor_map_shared : cfloor_map
    base = map(pages, huge ? 1 : 0, isPopulated ? 1 : 0)
    self.pages = pages
  }

  deinit { cfloor_unmap(base, pages) }

  /// How many pages the machine could give now.
  static var freePages: Int { cfloor_free_pages() }

  /// Writes each page of `order` once; wall ns a page.
  func write(_ order: [UInt32], writers: Int = 1) -> Double { writePages(at: base, order, writers: writers) }
}

/// The writer of both sides: writes each page of `order` once, by one thread or two; wall ns a page.
func writePages(at base: UInt64, _ order: [UInt32], writers: Int = 1) -> Double {
  // The array's bytes are used only during the call.
  unsafe writers == 2
    ? cfloor_write_pages_by_two(base, order, order.count) : cfloor_write_pages(base, order, order.count)
}

/// The reader of both sides: loads a word of each page of `order`; ns a page.
func readPages(at base: UInt64, _ order: [UInt32]) -> Double {
  // The array's bytes are used only during the call.
  unsafe cfloor_read_pages(base, order, order.count)
}

extension Region {
  /// As ``writePages(at:_:writers:)``, on a region of 4 KiB pages.
  func write(_ order: [UInt32]) -> Double { writePages(at: UInt64(addresses.start), order) }
}

/// Takes memory for every page in bulk.
func populate(at base: UInt64, pages: Int) { cfloor_populate(base, pages) }

/// How many of the pages are mapped by huge page-table entries; negative if the kernel does not tell.
func hugePages(at base: UInt64, pages: Int) -> Int { Int(cfloor_huge_pages(base, pages)) }

/// The floor's own write tracking. One at a time in a process.
@safe struct FloorWatch: ~Copyable {
  enum Mechanism {
    case handlerThread, inPlace, asynchronous, asynchronousByScan, asynchronousHuge, mprotect

    var number: CInt {
      let value =
        switch self {
        case .handlerThread: cfloor_thread
        case .inPlace: cfloor_in_place
        case .asynchronous: cfloor_async
        case .asynchronousByScan: cfloor_async_scan
        case .asynchronousHuge: cfloor_async_huge
        case .mprotect: cfloor_mprotect
        }
      return CInt(value.rawValue)
    }
  }

  /// What opening, registering and protecting took, ns a page.
  let armingTime: Double
  private let watch: OpaquePointer
  private let memory: FloorMemory

  init(_ memory: FloorMemory, _ mechanism: Mechanism, faultPages: Int = 1) {
    var time = 0.0
    unsafe watch = cfloor_watch_start(memory.base, memory.pages, mechanism.number, faultPages, &time)
    armingTime = time
    self.memory = memory
  }

  deinit { unsafe cfloor_watch_stop(watch) }

  /// As ``FloorMemory/write(_:writers:)``, with the watch alive until the last write.
  func write(_ order: [UInt32], writers: Int = 1) -> Double { memory.write(order, writers: writers) }

  /// Collects and protects again; ns per page of the memory, and how many pages were dirty.
  func collect() -> (time: Double, dirty: Int) {
    var dirty = 0
    let time = unsafe cfloor_collect(watch, &dirty)
    return (time, dirty)
  }
}

/// Monotonic time.
func nanoseconds() -> UInt64 { cfloor_now() }

/// What the process occupies, page tables included.
func residentKiB() -> Int { cfloor_resident_kib() }

/// What the page tables alone occupy.
func pageTableKiB() -> Int {
  var footprint = cfloor_footprint()
  guard unsafe cfloor_footprint_of(0, &footprint) == 0 else { return 0 }
  return Int(footprint.page_tables >> 10)
}

/// Writes memory to a file by io_uring, and fsync(2); ns a page.
func writeByRing(at base: UInt64, pages: Int, to path: String) throws -> Double {
  let time = unsafe path.withCString { unsafe cfloor_stream(base, pages, $0, 1 << 20, 8, 0) }
  guard time >= 0 else { throw BenchFault(description: "writing \(path) failed with errno \(-time)") }
  return Double(time) / Double(pages)
}

/// ns a load of the word at `base`, in a loop of so many.
func loadWord(at base: UInt, count: Int) -> Double { cfloor_load(UInt64(base), count) }

/// ns a load of the first word of a page that is found in a table; a power of two pages.
func loadThroughTable(_ table: [UInt64], count: Int) -> Double {
  // The array's bytes are used only during the call.
  unsafe cfloor_translated_load(table, table.count, count)
}
