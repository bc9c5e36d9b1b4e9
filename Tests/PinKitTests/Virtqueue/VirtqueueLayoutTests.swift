@testable import PinKit
import Testing
import Virtqueue

@Suite("Where a virtqueue lies") struct VirtqueueLayoutTests {
  @Test("Sizes, offsets and alignment are virtio's") func sizes() throws {
    let layout = try VirtqueueLayout(size: 256, at: 128, in: 1 << 20)
    #expect(layout.descriptors == 128..<128 + 4096)
    #expect(layout.available == 4224..<4224 + 518)
    #expect(layout.used == 4800..<4800 + 2054)
    #expect(layout.bytes == 128..<6854)
    #expect(VirtqueueLayout.byteCount(size: 256) == 6854 - 128)
    #expect(layout.availableEntry(257) == layout.available.lowerBound + 6)
    #expect(layout.usedEntry(.max) == layout.used.lowerBound + 4 + 8 * 255)
    #expect(MemoryLayout<VirtqueueDescriptor>.size == 16 && MemoryLayout<VirtqueueUsedElement>.size == 8)
    #expect(MemoryLayout<VirtqueueDescriptor>.offset(of: \.next) == 14)
  }

  @Test("It fits to the byte", arguments: [1, 2, 256, 32_768]) func fits(size: Int) throws {
    let bytes = VirtqueueLayout.byteCount(size: size)
    #expect(try VirtqueueLayout(size: size, in: bytes).bytes.upperBound == bytes)
    #expect(throws: VirtqueueError.self) { try VirtqueueLayout(size: size, in: bytes - 1) }
    #expect(try VirtqueueLayout(size: size, at: 64, in: bytes + 64).bytes.upperBound == bytes + 64)
    #expect(throws: VirtqueueError.self) { try VirtqueueLayout(size: size, at: 64, in: bytes + 63) }
  }

  @Test("Layouts that cannot be are refused") func refuses() {
    for size in [0, -1, 3, 65_536, Int.min, .max] {
      #expect(throws: VirtqueueError.self) { try VirtqueueLayout(size: size, in: 1 << 30) }
    }
    for offset in [-64, 1, 32, 1 << 20, Int.max & ~63] {
      #expect(throws: VirtqueueError.self) { try VirtqueueLayout(size: 16, at: offset, in: 1 << 20) }
    }
    let wrong = [
      (8, 512, 1024), (0, 513, 1024), (0, 512, 1026), (0, 128, 1024), (0, 512, 516), (512, 0, 600), (0, 512, 4096),
      (-16, 512, 1024),
      (Int.max & ~15, 512, 1024), (0, Int.max - 1, 1024), (0, 512, Int.max & ~3),
    ]
    for (descriptors, available, used) in wrong {
      #expect(throws: VirtqueueError.self, "\(descriptors), \(available), \(used)") {
        try VirtqueueLayout(size: 16, descriptorsAt: descriptors, availableAt: available, usedAt: used, in: 4096)
      }
    }
  }
}
