import PinKit
import SystemPackage

extension PinTopic {
  /// Pin and unpin of one page after the other; ns for both.
  static func single(_ plan: BenchPlan, _ backing: Backing, _ options: PinOptions) throws -> BenchContest {
    let space = try AddressSpace()
    let region = try space.map(backing, pages: 512)
    try region.pin(0..<512, options).unpin()
    let count = plan.quick ? 20_000 : 200_000
    return BenchContest {
      let start = nanoseconds()
      for index in 0..<count {
        let page = index & 511
        try region.pin(page..<page + 1, options).unpin()
      }
      let time = nanoseconds() - start
      _ = space
      return Double(time) / Double(count)
    } floor: {
      FloorFixed.countUpDown(count)
    }
  }

  /// Pin and unpin of 512 pages at once; ns a page for both.
  static func range(_ plan: BenchPlan, _ backing: Backing) throws -> BenchContest {
    let space = try AddressSpace()
    let region = try space.map(backing, pages: 512)
    try region.pin(0..<512, .write).unpin()
    let count = plan.quick ? 100 : 1_000
    return BenchContest {
      let start = nanoseconds()
      for _ in 0..<count {
        let pin = try region.pin(0..<512, .write)
        guard pin.pages == 0..<512 else { throw BenchFault(description: "pinned \(pin.pages) only") }
      }
      let time = nanoseconds() - start
      _ = space
      return Double(time) / Double(count * 512)
    } floor: {
      FloorFixed.countWords(512, count)
    }
  }

  static func fixedRead(_ plan: BenchPlan) throws -> BenchContest {
    let pages = 1_024
    let file = try FloorFixedFile(bytes: pages * 4096)
    let space = try AddressSpace()
    let memory = FloorMemory(pages: pages, isShared: true)
    let floor = try FloorBox(FloorFixed(memory))
    let region = try space.map(.pool, pages: pages)
    let buffers = FixedBox(try FixedBuffers(region, [0..<pages]))
    let count = plan.quick ? 4_096 : 32_768
    let depth = 32
    return BenchContest {
      let time = try buffers.read(file, pages: pages, depth: depth, count: count)
      let last: UInt8 = try region.load(fromByteOffset: pages * 4096 - 1)
      guard last == 7 else { throw BenchFault(description: "nothing was read: the figure means nothing") }
      return time
    } floor: {
      try floor.fixed.read(file, block: 4096, depth: depth, count: count)
    }
  }

  private final class FloorBox {
    let fixed: FloorFixed
    init(_ fixed: consuming FloorFixed) { self.fixed = fixed }
  }

  private final class FixedBox {
    var buffers: FixedBuffers
    init(_ buffers: consuming FixedBuffers) { self.buffers = buffers }

    func read(_ file: FloorFixedFile, pages: Int, depth: Int, count: Int) throws -> Double {
      try Self.read(&buffers, file, pages: pages, depth: depth, count: count)
    }

    private static func read(
      _ buffers: inout FixedBuffers, _ file: FloorFixedFile, pages: Int, depth: Int, count: Int
    ) throws -> Double {
      let descriptor = FileDescriptor(rawValue: file.descriptor)
      let start = nanoseconds()
      for done in stride(from: 0, to: count, by: depth) {
        for index in done..<done + depth {
          let at = index % pages * 4096
          guard try buffers.queueRead(from: descriptor, at: at, into: 0, bytes: at..<at + 4096) == .queued else {
            throw BenchFault(description: "the ring is full")
          }
        }
        try buffers.submit(waitingFor: depth)
        for _ in 0..<depth {
          guard buffers.nextCompletion()?.outcome == .done(bytes: 4096) else {
            throw BenchFault(description: "a read failed")
          }
        }
      }
      return Double(nanoseconds() - start) / Double(count)
    }
  }

  static func transferRead(_ plan: BenchPlan) throws -> BenchContest {
    let pages = 1_024
    let block = 64 << 10
    let file = try FloorFixedFile(bytes: pages * 4096)
    let space = try AddressSpace()
    let memory = FloorMemory(pages: pages)
    let region = try space.map(.anonymous(hugePages: .never), pages: pages)
    let count = plan.quick ? 256 : 2_048
    return BenchContest {
      let descriptor = FileDescriptor(rawValue: file.descriptor)
      let start = nanoseconds()
      for index in 0..<count {
        let at = index * block % (pages * 4096)
        guard try region.read(from: descriptor, offset: at, into: at..<at + block) == block else {
          throw BenchFault(description: "a short read")
        }
      }
      _ = space
      return Double(nanoseconds() - start) / Double(count)
    } floor: {
      try file.read(into: memory, block: block, count: count)
    }
  }
}
