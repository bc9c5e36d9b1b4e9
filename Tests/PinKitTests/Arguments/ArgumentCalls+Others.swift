import Glibc
import PinKitCrypto
import SystemPackage
import Virtqueue

@testable import PinKit

extension VirtqueueError: ForeignError {}

/// The calls that need no region.
enum OtherCalls {
  static func spaces(_ space: AddressSpace) -> [ArgumentCall] {
    func map(_ backing: Backing, _ pages: Int) throws { try space.map(backing, pages: pages).unmap() }
    return [
      ArgumentCall("map(anonymous)", number: { try map(.anonymous, $0) }),
      ArgumentCall("map(pool)", number: { try map(.pool, $0) }),
      ArgumentCall("map(hugetlb)", number: { if $0 < 0 || $0 > 1 << 30 { try map(.hugetlb, $0) } }),
      ArgumentCall(
        "readerCount",
        number: { value in
          var configuration = AddressSpace.Configuration()
          (configuration.readerCount, configuration.patience) = (value, Double(value))
          try AddressSpace(configuration: configuration).close()
        }),
      ArgumentCall(
        "metricsInterval",
        number: { value in
          var configuration = AddressSpace.Configuration()
          configuration.metricsInterval = Double(value)
          try AddressSpace(configuration: configuration).close()
        }),
      ArgumentCall("adopt", addresses: { try space.adopt($0).unmap() }),
      ArgumentCall(
        "idleSeconds",
        number: { value in
          let region = try space.map(.pool, pages: 4)
          defer { try? region.unmap() }
          try region.setSealer(AESGCMSealer(), SealingOptions(idleSeconds: Double(value)))
        }),
    ]
  }

  static func stores(_ space: AddressSpace, _ store: FileStore, path: String) -> [ArgumentCall] {
    let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    let memory = unsafe AddressRange(page)
    func fill(_ around: FillAround) throws {
      let region = try space.map(.file(UnrulyStore(pages: 8), fillAround: around), pages: 8)
      _ = try region.load(fromByteOffset: 4096, as: UInt8.self)
      try region.unmap()
    }
    return [
      ArgumentCall("PageStore.read", range: { unsafe try store.read($0, into: page) }),
      ArgumentCall(
        "PageStore.readNow",
        range: { range in
          let isRead = unsafe store.readNow(range, into: page)
          check(!isRead || range.lowerBound >= 0 && range.lowerBound < store.geometry.pageCount, "read \(range)")
        }),
      ArgumentCall("pageMakeWritable", range: { try store.pageMakeWritable($0) }),
      ArgumentCall("pageMakeWritableNow", range: { _ = store.pageMakeWritableNow($0) }),
      ArgumentCall(
        "PageStore.write",
        range: { range in
          let errors = store.write([PageTransfer(pages: range, memory: memory)])
          check(errors.count, is: 1)
          check(
            (errors[0] == nil) == (range.lowerBound >= 0 && range.upperBound <= 8 && range.count == 1),
            "write \(range): \(errors)")
        }),
      ArgumentCall(
        "PageTransfer.memory", addresses: { _ = store.write([PageTransfer(pages: 0..<1, memory: $0)]) }),
      ArgumentCall(
        "FileStore(creating:)",
        number: { value in
          defer { unsafe unlink(path) }
          _ = try FileStore(path: path, creating: value)
        }),
      ArgumentCall("fillAround.block", number: { try fill(.block($0)) }),
      ArgumentCall("fillAround.adaptive", number: { try fill(.adaptive(maximum: $0)) }),
      ArgumentCall("StoreGeometry", number: { check(StoreGeometry(byteCount: $0).pageCount >= 0, "\($0)") }),
    ]
  }

  static func values() -> [ArgumentCall] {
    [
      ArgumentCall(
        "DirtySet",
        number: { number in
          let set = DirtySet(pageCount: number)
          _ = (set.contains(number), set.isEmpty, set.count, set.union(set), DirtySet(pageCount: 8).contains(number))
          if number < 1 << 32 { _ = set.bitmap() }
          _ = try DirtySet(pageCount: number, bitmap: [])
        }),
      ArgumentCall(
        "DirtySet(runs:)",
        range: { range in
          for count in [range.upperBound, 8, -1, Int.max] {
            let set = DirtySet(pageCount: count, runs: [range, range])
            _ = (set.count, set.isDisjoint(with: range), set.contains(range.lowerBound), set.subtracting(set))
            check(set.pageCount >= 0, "\(set.pageCount)")
          }
        }),
      ArgumentCall(
        "FrameCounts",
        range: { range in
          let counts = FrameCounts(references: range.lowerBound, mappings: range.upperBound)
          _ = (counts.mayBePinned, ReusePolicy.exclusive.decide(counts))
          _ = FrameCounts(references: range.upperBound, mappings: range.lowerBound).mayBePinned
        }),
      ArgumentCall(
        "VirtqueueLayout",
        range: { range in
          _ = VirtqueueLayout.byteCount(size: range.lowerBound)
          for byteCount in [range.upperBound, Int.max, 8192] {
            _ = try? VirtqueueLayout(size: 8, at: range.lowerBound, in: byteCount)
            _ = try? VirtqueueLayout(size: range.lowerBound, in: byteCount)
            _ = try? VirtqueueLayout(
              size: 8, descriptorsAt: range.lowerBound & ~63, availableAt: range.upperBound & ~63, usedAt: byteCount & ~63,
              in: byteCount)
          }
        }),
      ArgumentCall(
        "ImageProgress",
        range: {
          _ = ImageProgress(
            pagesDone: $0.lowerBound, pagesTotal: $0.upperBound, bytesTransferred: $0.lowerBound)
        }),
      ArgumentCall(
        "AddressRange",
        addresses: { range in
          var turned = range
          (turned.start, turned.end) = (range.end, range.start)
          for range in [range, turned] {
            _ = (range.count, range.isEmpty, range.contains(range.start), "\(range)")
            for other in [AddressRange(start: 0, end: .max), AddressRange(start: 4096, end: 8192)] {
              _ = (range.overlaps(other), other.clamped(to: range), range.clamped(to: other))
            }
          }
        }),
      ArgumentCall("AESGCMSealer", number: { _ = try AESGCMSealer(largestPage: $0) }),
      ArgumentCall("KeyPage", number: { _ = try KeyPage(randomByteCount: $0) }),
      ArgumentCall(
        "PageIdentity",
        number: { number in
          let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 64)
          defer { unsafe bytes.deallocate() }
          let record = UnsafeMutableRawBufferPointer.allocate(byteCount: AESGCMSealer.recordSize, alignment: 8)
          defer { unsafe record.deallocate() }
          let sealer = try AESGCMSealer()
          let identity = PageIdentity(region: 1, page: number, generation: .max)
          try unsafe sealer.seal(bytes, identity: identity, record: record)
          try unsafe sealer.open(bytes, identity: identity, record: UnsafeRawBufferPointer(record))
        }),
    ]
  }

  static func kernel() -> [ArgumentCall] {
    [
      ArgumentCall(
        "MemoryFile",
        number: { number in
          var file = try MemoryFile(name: "evil", size: 4096)
          try file.resize(to: number)
          _ = try MemoryFile(name: "evil", size: number)
        }),
      ArgumentCall(
        "MemoryFile.range",
        range: { range in
          let file = try MemoryFile(name: "evil", size: 8192)
          try file.punchHole(range)
          try file.allocate(range)
        }),
      ArgumentCall(
        "MemoryFile.offset",
        number: { offset in
          let file = try MemoryFile(name: "evil", size: 8192)
          var bytes: [UInt8] = [1, 2, 3]
          try? file.write(bytes.span, at: offset)
          var span = bytes.mutableSpan
          try file.read(into: &span, at: offset)
        }),
      ArgumentCall(
        "SubmissionRing",
        number: { number in
          var ring = try SubmissionRing(entries: 8)
          _ = try ring.submit(waitingFor: number)
          _ = try SubmissionRing(entries: min(number, 64))
        }),
      ArgumentCall(
        "SubmissionRing.offset",
        number: { offset in
          var ring = try SubmissionRing(entries: 8)
          let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
          defer { unsafe page.deallocate() }
          let memory = unsafe AddressRange(page)
          let file = try MemoryFile(name: "evil", size: 4096)
          _ = ring.queueRead(from: file.descriptor, at: offset, into: memory, userData: 1)
          try ring.submit(waitingFor: 1)
          _ = ring.completions()
          try ring.readAll([.init(descriptor: file.descriptor, offset: offset, memory: memory)], atEnd: .zeroFill)
        }),
      ArgumentCall(
        "SubmissionRing.memory",
        addresses: { memory in
          var ring = try SubmissionRing(entries: 8)
          // Nothing is written that anybody reads: the descriptor is none.
          _ = ring.queueWrite(to: -1, at: 0, from: memory, userData: 1)
          _ = ring.queueRead(from: -1, at: 0, into: memory, userData: 2)
          try ring.submit(waitingFor: 2)
          _ = ring.completions()
          try ring.writeAll([.init(descriptor: -1, offset: 0, memory: memory)])
        }),
      ArgumentCall(
        "PageMap",
        addresses: { range in
          let map = try PageMap()
          try map.scan(range, .init(anyOf: .present)) { _, _ in }
          _ = try? map.writeProtect(range, .init(required: .written))
          _ = try map.entries(range)
        }),
      ArgumentCall(
        "Userfaultfd",
        addresses: { range in
          let uffd = try Userfaultfd(features: [])
          let calls: [() throws -> Void] = [
            {
              try uffd.register(range, for: .missing); try uffd.unregister(range)
            },
            { _ = try uffd.writeProtect(range) }, { _ = try uffd.removeWriteProtection(range) },
            { _ = try uffd.copy(from: range.start, to: range) }, { _ = try uffd.zero(range) },
            { _ = try uffd.continueMapping(range) }, { _ = try uffd.move(from: range.end, to: range) },
            { _ = try uffd.poison(range) }, { try uffd.wake(range) }, { try uffd.unregister(range) },
          ]
          for call in calls { try? call() }
        }),
      ArgumentCall("ProcessMaps", addresses: { _ = try ProcessMaps.mappings(in: $0) }),
      ArgumentCall("DirtyTracking", addresses: { _ = try DirtyTracking.of($0) }),
      ArgumentCall("PinVerdict", addresses: { _ = try PinVerdict(of: $0, for: .writing, lasting: .long) }),
      ArgumentCall(
        "ObservedPages",
        addresses: { range in
          var pages = try ObservedProcess(getpid()).pages()
          try pages.scan(range) { _ in }
        }),
      ArgumentCall(
        "ObservedProcess",
        number: { number in
          let process = try ObservedProcess(Int32(truncatingIfNeeded: number | 1 << 30))
          _ = try process.mappings()
        }),
    ]
  }

  /// Mappings that no kernel would show.
  static func holders() -> ArgumentCall {
    ArgumentCall(
      "holders",
      addresses: { range in
        let process = try ObservedProcess(getpid())
        var mapping = try process.mappings().map(\.mapping).first { $0.inode != 0 }!
        (mapping.range, mapping.offset) = (range, UInt64(range.end))
        if range.start == 0 { _ = try process.holders(of: [mapping]) }
      })
  }
}
