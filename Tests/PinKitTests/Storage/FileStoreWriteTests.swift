import CTestSupport
import CUffd
import Foundation
import Testing

@testable import PinKit

private let page = Memory.pageSize

@Suite("FileStore: writes on real file systems") struct FileStoreWriteTests {
  @Test(
    "direct or not, a batch arrives whole, with a last page of any length",
    .skipped(if: LoopFileSystem.Kind.tmpfs.obstacle), arguments: LoopFileSystem.Kind.allCases, [512, 700, 4096])
  func direct(_ kind: LoopFileSystem.Kind, tail: Int) throws {
    let system = try LoopFileSystem(kind)
    for direct in [FileStore.Options.Direct.never, .preferred] {
      let name = system("file-\(direct)")
      let store = try FileStore(path: name, creating: 299 * page + tail, options: .init { $0.direct = direct })
      if direct == .preferred, kind == .ext4 || kind == .xfs { #expect(store.isDirect) }
      let buffer = try PageBuffer(300)
      for index in 0..<300 { buffer[index] = UInt64(index + 1) }
      let runs = [0..<1, 1..<64, 64..<65, 70..<200, 210..<300]
      #expect(store.write(runs.map { buffer.transfer($0, at: $0.lowerBound) }) == Array(repeating: nil, count: 5))
      try store.flush()
      #expect(fileSize(name) == 299 * page + tail)
      let found = try PageBuffer(300)
      try store.fill(found, 0..<300, from: 0..<300)
      for index in 0..<299 { #expect(found[index] == (runs.contains { $0.contains(index) } ? UInt64(index + 1) : 0)) }
      #expect(found.byte(299, tail - 1) == buffer.byte(299, tail - 1) && found.isZero(299, from: tail))
      // Through the page cache the same is there.
      #expect(try RawFile.read(name).count == 299 * page + tail)
      #expect(try RawFile.read(name)[150 * page] == 151)
    }
  }

  @Test("direct I/O that is required and cannot be had is refused; preferred, it is done without")
  func noDirect() throws {
    let path = "/sys/kernel/uevent_seqnum"  // files of sysfs have none
    let options = FileStore.Options { $0.isReadOnly = true }
    expect(.unsupported, "O_DIRECT") {
      var options = options
      options.direct = .required
      _ = try FileStore(path: path, options: options)
    }
    var preferring = options
    preferring.direct = .preferred
    #expect(try !FileStore(path: path, options: preferring).isDirect)
  }

  @Test(
    "writes of whole pages: the file system tears none, and says so in the geometry",
    .skipped(if: LoopFileSystem.Kind.xfs.obstacle))
  func wholePages() throws {
    let system = try LoopFileSystem(.xfs)
    let options = FileStore.Options { $0.writesWholePages = true }
    // An older kernel has no such writes on a device that has none.
    guard KernelVersion.isAtLeast(6, 16) else {
      expect(.unsupported) { _ = try FileStore(path: system("file"), creating: 40 * page, options: options) }
      return try Test.skip(if: "atomic writes of xfs need Linux 6.16")
    }
    let store = try FileStore(path: system("file"), creating: 40 * page, options: options)
    #expect(store.geometry.atomicUnit == page && store.isDirect)
    let buffer = try PageBuffer(40)
    for index in 0..<40 { buffer[index] = UInt64(index + 3) }
    #expect(store.write([buffer.transfer(0..<30, at: 0), buffer.transfer(30..<31, at: 30)]) == [nil, nil])
    try store.flush()
    for index in 0..<31 { #expect(try store.get(index) == UInt64(index + 3)) }
    expect(.unsupported, "whole pages") { _ = try FileStore(path: system("odd"), creating: 4097, options: options) }
  }

  @Test("a block device is a store", .skipped(if: LoopDevice.obstacle))
  func blockDevice() throws {
    let device = try LoopDevice(size: 1 << 20)
    for direct in [FileStore.Options.Direct.never, .required] {
      let store = try FileStore(path: device.path, options: .init { $0.direct = direct })
      #expect(store.geometry.byteCount == 1 << 20 && !store.reservesSpace && store.isDirect == (direct == .required))
      let value: UInt64 = store.isDirect ? 5 : 6
      try store.put(255, value)
      try store.pageMakeWritable(0..<256)
      try store.flush()
      #expect(try store.get(255) == value)
    }
    let readOnly = try LoopDevice(size: 1 << 20, options: ["--read-only"])
    expect(.readOnly) { _ = try FileStore(path: readOnly.path) }
    _ = try FileStore(path: readOnly.path, options: .init { $0.isReadOnly = true })
  }

  @Test("without io_uring the same is written", arguments: [false, true]) func forbidden(_ fails: Bool) async {
    await #expect(processExitsWith: .success) { [fails = fails as Bool] in
      if !fails { check(ct_forbid_io_uring(), is: 0) }
      let directory = try ImageDirectory()
      let store = try FileStore(path: directory("file"), creating: 200 * 4096)
      let buffer = try PageBuffer(200)
      for index in 0..<200 { buffer[index] = UInt64(index + 1) }
      let transfers = stride(from: 0, to: 200, by: 2).map { buffer.transfer($0..<$0 + 1, at: $0) }
      // Completions that are errors are the transfers'.
      if fails { cuffd_inject(CInt(cuffd_call_completion.rawValue), EIO, 7, 1) }
      let outcomes = store.write(transfers)
      check(outcomes.filter { $0 == nil }.count, is: fails ? 99 : 100)
      if fails { check(outcomes.compactMap { $0?.code }, is: [.inputOutput]) }
      for index in 0..<200 where outcomes[index / 2] == nil {
        try check(store.get(index), is: index.isMultiple(of: 2) ? UInt64(index + 1) : 0)
      }
    }
  }

  @Test("a limit on file sizes ends a write short, is an error and no signal, and spares the pages before it")
  func sizeLimit() async {
    await #expect(processExitsWith: .success) {
      let directory = try ImageDirectory()
      for forbidsRing in [false, true] {
        if forbidsRing { check(ct_forbid_io_uring(), is: 0) }
        let store = try FileStore(path: directory("file-\(forbidsRing)"), creating: 64 * 4096)
        let buffer = try PageBuffer(64)
        for index in 0..<64 { buffer[index] = UInt64(index + 1) }
        check(ct_limit_file_size(20 * 4096 + 100), is: 0)
        let runs = [0..<18, 18..<19, 19..<24, 30..<31, 40..<41]
        let outcomes = store.write(runs.map { buffer.transfer($0, at: $0.lowerBound) })
        check(ct_limit_file_size(0), is: 0)
        check(outcomes.map { $0?.code }, is: [nil, nil, .limitReached, .limitReached, .limitReached])
        for index in 0..<20 { try check(store.get(index), is: UInt64(index + 1)) }
        try check(store.get(30), is: 0)
        // No signal waits for later.
        ct_unblock_signals()
      }
    }
  }

  @Test("many threads at once, each with pages of its own, against a shadow") func threads() throws {
    let directory = try ImageDirectory()
    for direct in [FileStore.Options.Direct.never, .preferred] {
      let store = try FileStore(path: directory("\(direct)"), creating: 8 * 64 * page, options: .init { $0.direct = direct })
      let findings = Findings()
      try onThreads(8) { thread in
        var random = SeededRandom(seed: Seed.of(thread))
        var shadow = [UInt64](repeating: 0, count: 64)
        let buffer = try PageBuffer(64)
        let found = try PageBuffer(1)
        // A thread has every eighth page: neighbours belong to others.
        for round in 1...40 {
          var transfers: [PageTransfer] = []
          for index in 0..<64 where random.chance(40) {
            shadow[index] = UInt64(round << 16 | thread << 8 | index)
            buffer[index] = shadow[index]
            transfers.append(buffer.transfer(index * 8 + thread..<index * 8 + thread + 1, at: index))
          }
          for case let error? in store.write(transfers.shuffled(using: &random)) { findings.note("\(error)") }
          if round.isMultiple(of: 10), !store.isDirect { try store.flush() }
          for index in 0..<64 {
            let number = index * 8 + thread
            found[0] = .max
            if !store.fillNow(found, 0..<1, from: number..<number + 1) {
              try store.fill(found, 0..<1, from: number..<number + 1)
            }
            if found[0] != shadow[index] { findings.note("page \(number): \(String(describing: found[0]))") }
          }
        }
      }
      try store.flush()
      #expect(findings.isEmpty, "\(findings.all)")
    }
  }
}
