import Glibc
import Synchronization
import Testing

@testable import PinKit

/// A store that gives fewer answers than it was asked for, or more, until it is told to behave.
private final class MiscountingStore: PageStore {
  let store: UnrulyStore
  let difference: Mutex<Int>
  var geometry: StoreGeometry { store.geometry }

  init(_ store: UnrulyStore, _ difference: Int) {
    self.store = store
    self.difference = Mutex(difference)
  }

  func read(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) throws(PinError) {
    unsafe try store.read(pages, into: memory)
  }

  func write(_ transfers: [PageTransfer]) -> [PinError?] {
    let difference = difference.withLock { $0 }
    if difference == 0 { return store.write(transfers) }
    return Array(repeating: nil, count: max(0, transfers.count + difference))
  }

  func flush() throws(PinError) { try store.flush() }
}

@Suite("Arguments and answers that make no sense") struct ArgumentErrorTests {
  private let directory: ImageDirectory
  init() throws { directory = try ImageDirectory() }

  @Test("W5: a store that miscounts its answers has written nothing, and gets it all again", arguments: [-1, 1, -100])
  func miscounted(_ difference: Int) throws {
    let store = MiscountingStore(UnrulyStore(pages: 8), difference)
    let space = try AddressSpace.forTests()
    let region = try space.map(.file(store), pages: 8)
    for page in [0, 3, 6] { try region.setByte(0x70 + UInt8(page), page) }
    // One that is pinned for writing goes another way.
    let pin = try region.pin(3..<4, .write)
    for _ in 0..<2 {
      let error = #expect(throws: PinError.self) { try region.flush() }
      #expect(error?.code == .inputOutput)
      #expect(error?.description.contains("must return one for each") == true, "\(String(describing: error))")
      for page in [0, 3, 6] { #expect(try region.filePageState(page).isDirty, "page \(page)") }
    }
    pin.unpin()
    store.difference.withLock { $0 = 0 }
    try region.flush()
    for page in [0, 3, 6] {
      #expect(store.store.durableByte(page) == 0x70 + UInt8(page))
      #expect(try !region.filePageState(page).isDirty)
    }
    try space.close()
  }

  @Test("K5: what is no file is named as such, and not as one of another size", arguments: ["/dev/null", "/dev/zero"])
  func devices(_ path: String) throws {
    let error = #expect(throws: PinError.self) { _ = try FileStore(path: path, creating: 4096) }
    #expect(error?.code == .invalidArgument)
    #expect(error?.description.contains("neither a file nor a block device") == true, "\(String(describing: error))")
  }

  @Test("K5: a pipe is no file, either") func pipes() throws {
    let path = directory("pipe")
    try #require(unsafe mkfifo(path, 0o600) == 0)
    let error = #expect(throws: PinError.self) { _ = try FileStore(path: path, creating: 4096) }
    #expect(error?.code == .invalidArgument, "\(String(describing: error))")
  }

  @Test(
    "P1: a region that is gone has no verdict", arguments: [Subject.anonymous, .pool, .adoptedAnonymous, .adoptedShared])
  func verdictOfNothing(_ subject: Subject) throws {
    let space = try AddressSpace.forTests()
    try subject.with(space, pages: 2) { region in
      #expect(try region.pinVerdict(for: .writing, lasting: .long).isAllowed)
      try region.unmap()
      for call in [
        { _ = try region.pinVerdict(for: .writing, lasting: .long) }, { _ = try region.needsDirtyTracking },
        { _ = try region.wantsWriteNotify },
      ] as [() throws -> Void] {
        let error = #expect(throws: PinError.self) { try call() }
        #expect(error?.code == .unmapped)
      }
    }
    try space.close()
  }

  @Test("P1/K1: secret memory has no pins, short ones included, as the kernel says", .needs(.secret))
  func secretMemory() throws {
    let mapping = try GroundMapping(.secret, nil, shared: true)
    let space = try AddressSpace.forTests()
    let region = try space.adopt(mapping.range)
    for access in PinVerdict.Access.allCases {
      for duration in PinVerdict.Duration.allCases {
        #expect(try region.pinVerdict(for: access, lasting: duration) == .refused(.noPages(.secret)))
        if let kernel = try PinOracle.allows(mapping.range, access, duration) { #expect(!kernel) }
        var options: PinOptions = access == .writing ? .write : []
        if duration == .long { options.insert(.longTerm) }
        // The second one finds whatever the first has left behind.
        for _ in 0..<2 {
          let error = #expect(throws: PinError.self) { _ = try region.pin(0..<1, options) }
          #expect(error?.code == .unsupported, "\(access) \(duration): \(String(describing: error))")
        }
      }
    }
    try region.store(UInt8(7), toByteOffset: 0)
    try space.close()
  }

  @Test("K5: an address range counts what an Int can, and never traps") func addressRanges() {
    #expect(AddressRange(start: 0, end: .max).count == .max)
    #expect(AddressRange(start: 1, end: 1 << 63).count == .max)
    #expect(AddressRange(start: 2, end: 1 << 63).count == .max - 1)
    #expect(AddressRange(start: 0, end: 1 << 63).count == .max)
    var turned = AddressRange(start: 0, end: 4096)
    turned.start = 8192
    #expect(turned.count == 0)
  }

  @Test("K5: geometry and sets of numbers that make no sense hold nothing") func geometries() {
    #expect(StoreGeometry(byteCount: .max).pageCount == 1 << 51)
    #expect(StoreGeometry(byteCount: 4097).pageCount == 2)
    #expect(StoreGeometry(byteCount: 4096).pageCount == 1)
    #expect(StoreGeometry(byteCount: 0).pageCount == 0)
    #expect(StoreGeometry(byteCount: .min).pageCount == 0)
    #expect(DirtySet(pageCount: -5, runs: [0..<3]).isEmpty)
    #expect(DirtySet(pageCount: 65).bitmap().count == 16)
    #expect(DirtySet(pageCount: 64).bitmap().count == 8)
    #expect(DirtySet(pageCount: 0).bitmap().isEmpty)
  }

  @Test("K5: a snapshot is handed out in chunks of any size, and of none not at all") func chunks() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 100)
    try region.fill(with: 7)
    let snapshot = try region.snapshot()
    for chunk in [1, 7, 100, 101, Int.max / 4096, Int.max] {
      var pages = 0
      try unsafe snapshot.forEachStoredRun(upTo: chunk) { run, bytes in
        pages += run.count
        #expect(unsafe bytes[0] == 7 && bytes.count == run.count * 4096)
      }
      #expect(pages == 100, "\(chunk)")
    }
    for chunk in [0, -1, Int.min] {
      let error = #expect(throws: PinError.self) { try unsafe snapshot.forEachStoredRun(upTo: chunk) { _, _ in } }
      #expect(error?.code == .invalidArgument)
    }
    snapshot.close()
    try space.close()
  }
}
