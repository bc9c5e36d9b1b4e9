internal import CFloor

/// The kernel's own copy-on-write: memory of the floor that is forked.
@safe final class FloorFork {
  private let memory: OpaquePointer

  /// - Throws: ``BenchSkip`` if the kernel does not give huge pages.
  init(pages: Int, huge: Bool = false) throws {
    var made: OpaquePointer?
    let result = unsafe cfloor_cow_open(pages, huge ? 1 : 0, &made)
    guard result == 0, let made = unsafe made else {
      throw BenchSkip(description: "The floor has no memory to fork, errno \(-result).")
    }
    unsafe memory = made
  }

  deinit { unsafe cfloor_cow_close(memory) }

  /// ns inside one fork().
  func pause() throws -> Double { try figure(unsafe cfloor_cow_pause(memory)) }

  /// ns for which a thread that writes is stopped at most beside one fork(). The pages must be a power of two.
  func stall() throws -> Double { try figure(unsafe cfloor_cow_stall(memory)) }

  /// ns a page of one write to each page of `order` while a child shares them all.
  func copy(_ order: [UInt32]) throws -> Double {
    try figure(unsafe cfloor_cow_copy(memory, order, order.count)) / Double(order.count)
  }

  private func figure(_ result: Int64) throws -> Double {
    guard result >= 0 else { throw BenchFault(description: "fork() failed with errno \(-result)") }
    return Double(result)
  }
}

/// A thread that writes as fast as it can.
@safe final class BusyWriter {
  private let writer: OpaquePointer

  /// `pages` must be a power of two.
  init(at base: UInt64, pages: Int) throws {
    var made: OpaquePointer?
    let result = unsafe cfloor_writer_open(base, pages, &made)
    guard result == 0, let made = unsafe made else { throw BenchFault(description: "no writer, errno \(-result)") }
    unsafe writer = made
  }

  deinit { unsafe cfloor_writer_close(writer) }

  /// ns for which it was stopped at most while `body` ran.
  func longestStall(_ body: () throws -> Void) rethrows -> Double {
    unsafe cfloor_writer_begin(writer)
    try body()
    return Double(unsafe cfloor_writer_longest(writer))
  }
}
