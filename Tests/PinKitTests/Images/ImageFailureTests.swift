import CTestSupport
import Foundation
import SystemPackage
import Testing

@testable import PinKit

@Suite("Images that fail to be written") struct ImageFailureTests {
  private let directory: ImageDirectory
  init() throws { directory = try ImageDirectory() }
  private let source = ArraySource(pages: 3500, zeros: [30..<40])

  @Test("cancelling at any step leaves nothing behind, and an old image whole") func cancelled() throws {
    var steps = 0
    _ = try ImageWriter.write(source, to: directory("count")) { _ in
      steps += 1
      return .proceed
    }
    let old = try ImageWriter.write(ArraySource(pages: 10), to: directory("old"))
    let names = directory.names
    #expect(steps > 4)
    for limit in 1...steps {
      for (name, replacing) in [("new", false), ("old", true)] {
        var calls = 0
        expect(.cancelled, name) {
          _ = try ImageWriter.write(source, to: directory(name), replacing: replacing) { _ in
            calls += 1
            return calls == limit ? .cancel : .proceed
          }
        }
        #expect(directory.names == names, "step \(limit)")
      }
    }
    #expect(try SnapshotImage(path: old.path) == old)
    try old.verify()
    for limit in 1...3 {
      var calls = 0
      expect(.cancelled) {
        try SnapshotImage.compose([old], to: directory("raw")) { _ in
          calls += 1
          return calls == limit ? .cancel : .proceed
        }
      }
      #expect(directory.names == names)
    }
  }

  @Test("a source that gives up leaves nothing behind", arguments: [0, 1024, 3499]) func sourceFails(_ page: Int) {
    var failing = source
    failing.failing = page
    expect(.stopped, "page \(page)") { _ = try ImageWriter.write(failing, to: directory("image")) }
    #expect(directory.names.isEmpty)
  }

  @Test("nothing is replaced unless it was asked for") func replacing() throws {
    let old = try ImageWriter.write(ArraySource(pages: 10), to: directory("image"))
    expect(.alreadyExists, "ask to replace") { _ = try ImageWriter.write(source, to: directory("image")) }
    expect(.alreadyExists) { try SnapshotImage.compose([old], to: directory("image")) }
    expect(.invalidArgument, "header") { try SnapshotImage.compose([old], to: directory("image"), replacing: true) }
    #expect(try SnapshotImage(path: old.path) == old)
    let new = try ImageWriter.write(source, to: directory("image"), replacing: true)
    #expect(try SnapshotImage(path: new.path) == new)
    try new.verify()
    // A header that lost its file is nobody's image.
    try FileManager.default.removeItem(atPath: new.path)
    try ImageWriter.write(source, to: directory("image")).verify()
    try RawFile.write([1], directory("mine"))
    expect(.alreadyExists) { _ = try ImageWriter.write(source, to: directory("mine")) }
    #expect(try RawFile.read(directory("mine")) == [1])
    try SnapshotImage.compose([new], to: directory("mine"), replacing: true)
    #expect(try RawFile.read(directory("mine")) == source.bytes)
    #expect(directory.names == ["image", "image.pinkit", "mine"])
  }

  @Test("a file that appears while the image is written is not replaced") func appears() throws {
    var made = false
    expect(.alreadyExists) {
      _ = try ImageWriter.write(source, to: directory("image")) { _ in
        if !made { try? RawFile.write([7], directory("image")) }
        made = true
        return .proceed
      }
    }
    #expect(try RawFile.read(directory("image")) == [7])
    #expect(directory.names == ["image"])
  }

  @Test("two writers of one path: the second is told, the first goes on") func twoWriters() throws {
    var seen = 0
    let image = try ImageWriter.write(source, to: directory("image")) { _ in
      seen += 1
      expect(.inUse, "Another thread or process") { _ = try ImageWriter.write(source, to: directory("image")) }
      return .proceed
    }
    #expect(seen > 4)
    try image.verify()
    #expect(directory.names == ["image", "image.pinkit"])
  }

  @Test("what a killed process left is removed by the next writer") func stale() throws {
    for name in ["image.partial", "image.pinkit.partial", "image.pinkit"] { try RawFile.write([1, 2, 3], directory(name)) }
    expect(.corruptImage) { _ = try SnapshotImage(path: directory("image")) }
    let image = try ImageWriter.write(source, to: directory("image"))
    try image.verify()
    #expect(directory.names == ["image", "image.pinkit"])
  }

  @Test("paths that cannot be") func paths() throws {
    for name in ["a.pinkit", "a.partial"] {
      expect(.invalidArgument, name) { _ = try ImageWriter.write(source, to: directory(name)) }
    }
    expect(.notFound) { _ = try ImageWriter.write(source, to: directory("no/image")) }
    for path in ["", "a\0b"] { expect(.invalidArgument) { _ = try ImageWriter.write(source, to: path) } }
    expect(.invalidArgument) { _ = try ImageWriter.write(source, to: directory(String(repeating: "x", count: 250))) }
    try FileManager.default.createDirectory(atPath: directory("folder"), withIntermediateDirectories: false)
    expect(.invalidArgument, "no plain file") { _ = try ImageWriter.write(source, to: directory("folder"), replacing: true) }
    #expect(directory.names == ["folder"])
    _ = unsafe symlink(directory("elsewhere"), directory("link.partial"))
    expect(.invalidArgument, "no plain file") { _ = try ImageWriter.write(source, to: directory("link")) }
    #expect(directory.names == ["folder", "link.partial"])
  }

  @Test("sources that make no sense") func sources() {
    var wrong = ArraySource(pages: 10)
    wrong.runs = [0..<9]
    expect(.invalidArgument, "all 10 pages") { _ = try ImageWriter.write(wrong, to: directory("a")) }
    wrong.parent = SnapshotIdentity()
    for runs in [[0..<11], [5..<6, 4..<5], [1..<3, 3..<4], [2..<2]] as [[Range<Int>]] {
      wrong.runs = runs
      expect(.invalidArgument, "runs") { _ = try ImageWriter.write(wrong, to: directory("a")) }
    }
    wrong.runs = []
    wrong.parent = wrong.identity
    expect(.invalidArgument, "own parent") { _ = try ImageWriter.write(wrong, to: directory("a")) }
    wrong.pageSize = 1 << 30
    expect(.unsupported) { _ = try ImageWriter.write(wrong, to: directory("a")) }
    #expect(directory.names.isEmpty)
  }

  // MARK: Full disks

  @Test(
    "a full disk is out of space, and is as empty afterwards as before",
    .skipped(if: SmallFileSystem.Kind.tmpfs.obstacle),
    arguments: SmallFileSystem.Kind.allCases)
  func full(_ kind: SmallFileSystem.Kind) throws {
    let disk = try SmallFileSystem(kind, size: 8 << 20)
    let path = disk.directory + "/image"
    let names = {
      try FileManager.default.contentsOfDirectory(atPath: disk.directory).filter { $0 != "lost+found" }.sorted()
    }
    for _ in 0..<2 {
      expect(.outOfSpace, "Free space") { _ = try ImageWriter.write(source, to: path) }
      #expect(try names() == [])
    }
    // The same space still holds what fits, and keeps it when the next does not.
    let small = ArraySource(pages: 1000)
    let old = try ImageWriter.write(small, to: path)
    expect(.outOfSpace) { _ = try ImageWriter.write(source, to: path, replacing: true) }
    #expect(try names() == ["image", "image.pinkit"])
    #expect(try SnapshotImage(path: path) == old)
    try old.verify()
    let elsewhere = try ImageWriter.write(source, to: directory("image"))
    expect(.outOfSpace) { try SnapshotImage.compose([elsewhere], to: disk.directory + "/raw") }
    #expect(try names() == ["image", "image.pinkit"])
  }

  // MARK: Injected errors

  /// Fails every single call of a kind, one after the other, until an image comes about without one.
  private static func sweep(_ call: Injection.Call, _ errno: Errno, replacing: Bool, expecting code: PinError.Code) throws {
    let directory = try ImageDirectory()
    // Three blocks: writing back early, whose failure is nobody's concern, begins with the fourth.
    let source = ArraySource(pages: 3000, zeros: [30..<40])
    let path = directory("image")
    var (rounds, harmless) = (0, 0)
    while true {
      let old = replacing ? try ImageWriter.write(ArraySource(pages: 10), to: path, replacing: true) : nil
      let names = directory.names
      Injection.arm(call, errno, skip: rounds)
      let result: Result<SnapshotImage, PinError>
      do throws(PinError) { result = .success(try ImageWriter.write(source, to: path, replacing: replacing)) } catch {
        result = .failure(error)
      }
      let wasInjected = Injection.count > 0
      Injection.disarm()
      guard wasInjected else {
        try result.get().verify()
        break
      }
      rounds += 1
      switch result {
      case .success(let image):
        harmless += 1
        try image.verify()
      case .failure(let error):
        check(error.code, is: code, "\(error)")
        // Nothing, or the old image, or, once the old one is being exchanged, what is no image.
        let found = try? SnapshotImage(path: path)
        check(found == nil || found == old, "\(call) \(rounds): an image that nobody vouches for")
        try found?.verify()
        check(!directory.names.contains { $0.hasSuffix(".partial") }, "\(call) \(rounds): \(directory.names)")
        if found != nil || !replacing { check(directory.names, is: names, "\(call) \(rounds)") }
      }
      if !replacing {
        for name in directory.names { try FileManager.default.removeItem(atPath: directory(name)) }
      }
    }
    check(harmless, is: 0, "failures of \(call) went unnoticed")
    // Pages, header and directory are synced, and the directory once more where an old header goes.
    let expected: [Injection.Call: Int] = [.sync: replacing ? 4 : 3, .rename: 2, .create: 2, .pwrite: 1]
    check(rounds == expected[call] ?? rounds && rounds > 0, "\(call) was made \(rounds) times")
  }

  @Test(
    "every single call that can fail, failing", arguments: [Injection.Call.create, .rename, .sync, .completion, .pwrite],
    [false, true])
  func injected(_ call: Injection.Call, _ replacing: Bool) async {
    await #expect(processExitsWith: .success) { [call = call.rawValue as CInt, replacing = replacing as Bool] in
      ct_deadline(60)
      let call = Injection.Call(rawValue: call)!
      try Self.sweep(call, .ioError, replacing: replacing, expecting: .system)
      try Self.sweep(call, .noSpace, replacing: replacing, expecting: .outOfSpace)
    }
  }

  @Test("an error of a read is the device's, not the image's") func readErrors() async {
    await #expect(processExitsWith: .success) {
      let directory = try ImageDirectory()
      let image = try ImageWriter.write(ArraySource(pages: 3500), to: directory("image"))
      for skip in 0..<4 {
        Injection.arm(.completion, .ioError, skip: skip)
        do throws(PinError) {
          try image.verify()
          check(false, "it verified")
        } catch {
          check(error.code, is: .system)
          check(error.description.contains("read \(image.path)"), "\(error)")
        }
        Injection.arm(.completion, .interrupted, skip: skip)
        try image.verify()
      }
    }
  }
}
