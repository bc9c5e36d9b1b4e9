import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// `shmem_enabled`: whether memfds get huge pages.
enum HugePageSetting {
  private static let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

  static var isOurs: Bool { unsafe ct_may_write(path) != 0 }
  static var obstacle: String? { isOurs ? nil : "shmem_enabled is root's" }

  /// Runs `body` with huge pages allowed for memfds that ask for them, and puts the setting back.
  static func allowed(_ body: () throws -> Void) throws {
    let before = try ProcessMaps.readFile(path)
    let chosen = before.split(whereSeparator: \.isWhitespace).first { $0.hasPrefix("[") }?.dropFirst().dropLast() ?? "never"
    try #require(unsafe ct_write_file(path, "advise") == 0)
    defer { _ = unsafe ct_write_file(path, String(chosen)) }
    try body()
  }
}

/// Clones of pool memory on huge pages. They need `shmem_enabled` at `advise`, which root may set for the time of the test.
@Suite("Clones on huge pages", .serialized)
struct HugeCloneTests {
  fileprivate static let pages = 32 * 512

  /// How many pages of the region are mapped by huge entries.
  private func hugePages(_ region: Region) throws -> Int {
    var count = 0
    try PageMap().scan(region.addresses, PageMap.Query(required: .huge, returned: .huge)) { run, _ in
      count += run.count / 4096
    }
    return count
  }

  fileprivate func restore(_ region: Region) throws {
    let protection = try region.protection()
    unsafe protection.domain.pointee.lostHugeMappings.store(true, ordering: .relaxed)
    protection.restoreHugeMappings()
  }

  @Test(
    "W5: a clone keeps huge pages where nobody writes, and every write is seen",
    .enabled(if: HugePageSetting.isOurs, "needs root, for shmem_enabled"),
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace, .mprotect])
  func kept(mechanism: WriteTracking.Mechanism) throws {
    try HugePageSetting.allowed {
      let space = try AddressSpace()
      defer { try? space.close() }
      let region = try space.map(.pool(hugePages: .prefer), pages: Self.pages)
      for page in 0..<Self.pages { try region.store(UInt64(page), toByteOffset: page * 4096) }
      #expect(try hugePages(region) == Self.pages)
      let clone = try region.clone(mechanism: mechanism)
      // Pages are read before and after the huge mappings are back, and written in both regions.
      for page in stride(from: 0, to: Self.pages, by: 700) {
        #expect(try clone.load(fromByteOffset: page * 4096) == UInt64(page))
      }
      try region.store(UInt64(1), toByteOffset: 100 * 4096)
      try clone.store(UInt64(2), toByteOffset: 5 * 512 * 4096)
      try restore(region)
      try restore(clone)
      let intact = Self.pages - 512
      if mechanism != .mprotect {
        #expect(try hugePages(region) == intact)
        #expect(try hugePages(clone) == intact)
      }
      for page in 0..<Self.pages {
        #expect(try region.load(fromByteOffset: page * 4096) == UInt64(page == 100 ? 1 : page))
        #expect(try clone.load(fromByteOffset: page * 4096) == UInt64(page == 5 * 512 ? 2 : page))
      }
      #expect(try hugePages(region) >= intact)
      #expect(try hugePages(clone) >= (mechanism == .mprotect ? 0 : intact))
      for page in stride(from: 3, to: Self.pages, by: 511) {
        try region.store(UInt64(1_000_000 + page), toByteOffset: page * 4096)
        try clone.store(UInt64(2_000_000 + page), toByteOffset: (page + 1) % Self.pages * 4096)
      }
      for page in stride(from: 3, to: Self.pages, by: 511) {
        #expect(try region.load(fromByteOffset: page * 4096) == UInt64(1_000_000 + page))
        #expect(try clone.load(fromByteOffset: page * 4096) == UInt64(page))
        #expect(try clone.load(fromByteOffset: (page + 1) % Self.pages * 4096) == UInt64(2_000_000 + page))
      }
    }
  }

  @Test(
    "What others map while huge mappings are put back stays theirs",
    .enabled(if: HugePageSetting.isOurs, "needs root, for shmem_enabled"))
  func leavesOthersAlone() async {
    await #expect(processExitsWith: .success) {
      try HugePageSetting.allowed {
        let space = try AddressSpace()
        let region = try space.map(.pool(hugePages: .prefer), pages: HugeCloneTests.pages)
        for page in stride(from: 0, to: region.pageCount, by: 512) {
          try region.store(UInt64(page), toByteOffset: page * 4096)
        }
        let clone = try region.clone()
        let made = Mutex<[UInt]>([])
        TestHooks.set(.moved) { _ in
          // As large as the room that the move leaves, and smaller: whatever fits there goes there.
          for size in [64 << 20, 32 << 20, 16 << 20, 4 << 20, 2 << 20, 1 << 20, 1 << 16, 1 << 16] {
            let bytes = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
            made.withLock { $0.append(UInt(bitPattern: bytes)) }
          }
        }
        let tests = HugeCloneTests()
        try tests.restore(region)
        try tests.restore(clone)
        TestHooks.set(.moved, nil)
        let addresses = made.withLock { $0 }
        guard !addresses.isEmpty else { exit(3) }
        for address in addresses {
          // ENOMEM from memory that is not mapped.
          if unsafe madvise(UnsafeMutableRawPointer(bitPattern: address), 4096, MADV_NORMAL) != 0 { exit(4) }
        }
        try space.close()
      }
    }
  }
}
