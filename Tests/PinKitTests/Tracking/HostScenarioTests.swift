import Glibc
import Testing

@testable import PinKit

/// System calls, forks and changes that the program makes to tracked memory behind PinKit's back.
@Suite("Tracking and the rest of the program", .serialized) struct HostScenarioTests {
  private static func pointer(_ address: UInt) -> UnsafeMutableRawPointer? {
    unsafe UnsafeMutableRawPointer(bitPattern: address)
  }

  /// Has the kernel write 64 bytes to `address`; returns what read(2) said.
  private func receive(at address: UInt) throws -> Int32 {
    var ends: [Int32] = [0, 0]
    try #require(unsafe pipe(&ends) == 0)
    defer { for end in ends { close(end) } }
    let message = [UInt8](repeating: 42, count: 64)
    try #require(unsafe write(ends[1], message, 64) == 64)
    let got = unsafe read(ends[0], Self.pointer(address), 64)
    return got < 0 ? -errno : Int32(got)
  }

  @Test(
    "system calls that write into tracked memory work, and are seen",
    arguments: [.handlerThread, .asynchronous] as [WriteTracking.Mechanism])
  func systemCalls(_ mechanism: WriteTracking.Mechanism) throws {
    for subject in [Subject.anonymous, .pool] {
      let space = try AddressSpace.forTests()
      try subject.with(space, pages: 8) { region in
        let tracker = try region.trackWrites(mechanism)
        // Untouched, protected, and across two pages.
        for offset in [0, 0, 3 * 4096 - 32] {
          let got = try receive(at: region.addresses.start + UInt(offset))
          #expect(got == 64)
          let expected = offset == 0 ? [0..<1] : [2..<4]
          let runs = try tracker.collect().runs
          #expect(runs == expected)
          let value = try region.load(fromByteOffset: offset + 63, as: UInt8.self)
          #expect(value == 42)
        }
      }
      try space.close()
    }
  }

  @Test(
    "system calls into protected memory fail with EFAULT, and nothing is lost",
    arguments: [.inPlace, .mprotect] as [WriteTracking.Mechanism])
  func refusedSystemCalls(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 8)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    let target = region.addresses.start + 2 * 4096
    #expect(try receive(at: target) == -EFAULT)
    #expect(try tracker.collect().isEmpty)
    #expect(try region.load(fromByteOffset: 2 * 4096, as: UInt8.self) == 1)
    // Touched first, it works.
    try region.store(UInt8(2), toByteOffset: 2 * 4096)
    #expect(try receive(at: target) == 64)
    #expect(try tracker.collect().runs == [2..<3])
    #expect(try receive(at: target) == -EFAULT)
    try tracker.stop()
    #expect(try receive(at: target) == 64)
    try space.close()
  }

  @Test("a child of fork() does not disturb its parent's tracking", arguments: Mechanisms.all, [false, true])
  func forks(_ mechanism: WriteTracking.Mechanism, _ inherits: Bool) throws {
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = .failRegion
    configuration.inheritsAcrossFork = inherits
    let space = try AddressSpace(configuration: configuration)
    let region = try space.map(.anonymous(hugePages: .never), pages: 8)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    try region.store(UInt8(2), toByteOffset: 4096)
    let bytes = unsafe try #require(Self.pointer(region.addresses.start))
    let status = Fork.run {
      guard inherits else { return 0 }
      for page in 0..<8 { unsafe bytes.storeBytes(of: 99, toByteOffset: page * 4096, as: UInt8.self) }
      return 0
    }
    #expect(status == 0)
    let first = try tracker.collect().runs
    #expect(first == [1..<2], "\(first)")
    #expect(try region.load(fromByteOffset: 5 * 4096, as: UInt8.self) == 1)
    try region.store(UInt8(3), toByteOffset: 6 * 4096)
    #expect(try tracker.collect().runs == [6..<7])
    #expect(Fork.spawn() == 0)
    #expect(try tracker.collect().isEmpty)
    try space.close()
  }

  /// Mechanisms whose kernel side reports events.
  static let userfaultfd: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .asynchronous]

  @Test("K3: memory unmapped behind PinKit's back is an error from the first collection on", arguments: userfaultfd)
  func unmappedBehindItsBack(_ mechanism: WriteTracking.Mechanism) throws {
    for _ in 0..<20 {
      let space = try AddressSpace.forTests()
      let memory = try ForeignMemory(.adoptedAnonymous, pages: 8)
      let region = try space.adopt(memory.range)
      let tracker = try region.trackWrites(mechanism)
      unsafe munmap(Self.pointer(memory.range.start + 3 * 4096), 4096)
      let error = #expect(throws: PinError.self) { try tracker.collect() }
      #expect(error?.code == .mappingChanged)
      try region.unmap()
      memory.unmap(except: 3)
      try space.close()
    }
  }

  @Test("K3: memory moved behind PinKit's back is an error from the first collection on", arguments: userfaultfd)
  func movedBehindItsBack(_ mechanism: WriteTracking.Mechanism) throws {
    for _ in 0..<20 {
      let space = try AddressSpace.forTests()
      let memory = try ForeignMemory(.adoptedAnonymous, pages: 8)
      let region = try space.adopt(memory.range)
      let tracker = try region.trackWrites(mechanism)
      let place = try ForeignMemory(.adoptedAnonymous, pages: 1)
      let moved = unsafe Remap.move(Self.pointer(memory.range.start + 4096), 4096, Self.pointer(place.range.start))
      try #require(moved)
      let error = #expect(throws: PinError.self) { try tracker.collect() }
      #expect(error?.code == .mappingChanged)
      try region.unmap()
      memory.unmap(except: 1)
      place.unmap()
      try space.close()
    }
  }

  /// mremap(2), which Swift's Glibc does not declare.
  private enum Remap {
    private typealias Function =
      @convention(c) (UnsafeMutableRawPointer?, Int, Int, Int32, UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer?
    static func move(_ old: UnsafeMutableRawPointer?, _ length: Int, _ new: UnsafeMutableRawPointer?) -> Bool {
      guard let symbol = unsafe dlsym(nil, "mremap") else { return false }
      let mremap = unsafe unsafeBitCast(symbol, to: Function.self)
      return unsafe mremap(old, length, length, 3, new) == new  // MREMAP_MAYMOVE | MREMAP_FIXED
    }
  }

  @Test("pages dropped by madvise(2) behind PinKit's back count as written", arguments: userfaultfd)
  func droppedBehindItsBack(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 16)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    for _ in 0..<20 {
      unsafe madvise(Self.pointer(region.addresses.start + 5 * 4096), 2 * 4096, MADV_DONTNEED)
      #expect(try tracker.collect().runs == [5..<7])
      #expect(try region.load(fromByteOffset: 5 * 4096, as: UInt8.self) == 0)
      #expect(try tracker.collect().isEmpty)
      try region.store(UInt8(1), toByteOffset: 6 * 4096)
      #expect(try tracker.collect().runs == [6..<7])
      try region.fill(with: 1)
      #expect(try tracker.collect().count == 16)
    }
    try space.close()
  }

  @Test(
    "W5: a page of a file that was written, written back and reclaimed is still reported",
    .enabled(if: ForeignMemory.isTemporaryDirectoryOnDisk, "/tmp is in memory"))
  func reclaimed() throws {
    let space = try AddressSpace.forTests()
    try Subject.adoptedFile.with(space, pages: 16) { region in
      try region.fill(with: 1)
      let tracker = try region.trackWrites(.asynchronous)
      for page in [3, 9] { try region.store(UInt8(2), toByteOffset: page * 4096) }
      #expect(unsafe msync(Self.pointer(region.addresses.start), region.addresses.count, MS_SYNC) == 0)
      try Memory.advise(region.addresses, .pageOut)
      var absent: [Range<Int>] = []
      let map = try PageMap()
      let query = PageMap.Query(required: .present, inverted: .present)
      try map.scan(region.addresses, query) { run, _ in
        absent.append(Int(run.start - region.addresses.start) / 4096..<Int(run.end - region.addresses.start) / 4096)
      }
      let gone = DirtySet(pageCount: 16, runs: absent)
      try #require(gone.contains(3) && gone.contains(9), "the kernel kept the pages in memory")
      #expect(try tracker.collect().runs == [3..<4, 9..<10])
      #expect(try tracker.collect().isEmpty)
      // Coming back by a read is not a write.
      #expect(try region.load(fromByteOffset: 3 * 4096, as: UInt8.self) == 2)
      _ = try region.load(fromByteOffset: 5 * 4096, as: UInt8.self)
      #expect(try tracker.collect().isEmpty)
      try region.store(UInt8(3), toByteOffset: 5 * 4096)
      #expect(try tracker.collect().runs == [5..<6])
    }
    try space.close()
  }
}
