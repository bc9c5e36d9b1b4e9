internal import CFloor

/// Counting and reading without PinKit.
@safe struct FloorFixed: ~Copyable {
  private let raw: OpaquePointer

  init(_ memory: FloorMemory) throws {
    var made: OpaquePointer?
    let result = unsafe cfloor_fixed_start(memory.base, UInt64(memory.pages * 4096), &made)
    guard result == 0, let made = unsafe made else { throw BenchFault(description: "register buffers: errno \(-result)") }
    unsafe raw = made
  }
  deinit { unsafe cfloor_fixed_stop(raw) }

  func read(_ file: FloorFixedFile, block: Int, depth: Int, count: Int) throws -> Double {
    var time = 0.0
    let result = unsafe cfloor_fixed_read(raw, file.descriptor, block, depth, count, &time)
    guard result == 0 else { throw BenchFault(description: "READ_FIXED: errno \(-result)") }
    return time
  }

  static func countUpDown(_ count: Int) -> Double { cfloor_count_up_down(count) }
  static func countWords(_ words: Int, _ count: Int) -> Double { cfloor_count_words(words, count) }
}

/// A memfd whose pages are all there.
final class FloorFixedFile {
  let descriptor: CInt
  init(bytes: Int) throws {
    descriptor = cfloor_full_file(UInt64(bytes))
    guard descriptor >= 0 else { throw BenchFault(description: "make a file: errno \(-descriptor)") }
  }
  deinit { cfloor_close(descriptor) }

  /// With pread(2); ns a block.
  func read(into memory: FloorMemory, block: Int, count: Int) throws -> Double {
    var time = 0.0
    let result = unsafe cfloor_pread(memory.base, UInt64(memory.pages * 4096), descriptor, block, count, &time)
    guard result == 0 else { throw BenchFault(description: "pread: errno \(-result)") }
    return time
  }
}
