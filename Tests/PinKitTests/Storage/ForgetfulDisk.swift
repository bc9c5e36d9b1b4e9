import CTestSupport
import Foundation
import Synchronization
import Testing

@testable import PinKit

/// A disk that has what was flushed, and loses of everything else what it will, when its power fails: see Tests/Devices.
///
/// The power fails at a request of the disk's, in the middle of what a child is about. It is killed first, so nothing of it runs on a disk that
/// is gone. What the kernel had in its page cache can be written nowhere, and goes with the file system:
///
///     let disk = try ForgetfulDisk(.ext4)
///     await #expect(processExitsWith: .signal(SIGKILL)) { [power = disk.power as ForgetfulDisk.Power] in
///       try power.fail(after: 12, seed: 1)
///       …
///       try power.fail(seed: 1)
///     }
///     try disk.restore()
///
/// When the object is gone, or the process that has it, however it ended, nothing is left mounted, attached or running.
final class ForgetfulDisk: Sendable {
  /// What is on it.
  enum Contents: String, CaseIterable, Sendable {
    case nothing, ext4
  }

  /// The switch, for whoever is to die when the power fails. Can be handed to a child.
  struct Power: Codable, Sendable {
    fileprivate let control: String

    /// The power fails at that write or flush from now on, and kills this process.
    func fail(after requests: Int, seed: UInt64) throws { try ask("cut \(max(1, requests)) \(seed) \(getpid())") }
    /// It fails now, and kills this process.
    func fail(seed: UInt64) throws { try ask("cut 0 \(seed) \(getpid())") }

    @discardableResult fileprivate func ask(_ line: String) throws -> String {
      var answer = [CChar](repeating: 0, count: 128)
      let result = unsafe ct_ask(control, line, &answer, 128)
      let text = String(decoding: answer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      try #require(result == 0 && text != "?", "\(line): \(result) \(text)")
      return text
    }
  }

  /// What the machine lacks for it, if anything.
  static let missing: String? = {
    let programs = ["nbdkit", "nbdfuse", "losetup", "mkfs.ext4", "mount"].filter { SystemProgram.path($0) == nil }
    var list = programs
    if geteuid() != 0 { list.append("root") }
    if SystemProgram.path("cc") == nil, SystemProgram.path("clang") == nil { list.append("a C compiler") }
    for file in ["/dev/fuse", "/dev/loop-control", "/usr/include/nbdkit-plugin.h"]
    where !FileManager.default.fileExists(atPath: file) { list.append(file) }
    return list.isEmpty ? nil : list.joined(separator: ", ")
  }()
  static let isPossible = missing == nil
  static let reason: Comment = "needs \(missing ?? "nothing that is not here")"

  let power: Power
  private let contents: Contents
  fileprivate let directory: String
  private let server: pid_t
  /// As long as it is open, the disk is there.
  private let lifeline: CInt
  /// `/dev/loop…`
  private let attached = Mutex("")

  init(_ contents: Contents, size: Int = 64 << 20) throws {
    self.contents = contents
    directory = "\(Capabilities.temporaryDirectory)/pinkit-disk-\(UInt32.random(in: .min ... .max))"
    power = Power(control: directory + "/control")
    var input: CInt = -1
    let script = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appending(path: "../../Devices/forgetful-disk")
    server = unsafe ct_serve("/bin/sh", "\(script.path)\n\(directory)\n\(size)", 10, &input)
    lifeline = input
    try #require(server > 0, "the disk does not start: \(server)")
    try attach()
    guard contents == .ext4 else { return }
    try SystemProgram.makeFileSystem(
      "ext4", ["-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"], on: device)
    try mount()
  }

  deinit {
    guard server > 0 else { return }
    close(lifeline)
    _ = ct_wait(server)
  }

  /// The block device; after each ``restore()`` it may be another one.
  var device: String { attached.withLock { $0 } }

  /// Where a file of that name is: of an empty disk, the disk itself.
  func callAsFunction(_ name: String) -> String { contents == .nothing ? device : "\(directory)/files/\(name)" }

  /// How many writes and flushes the disk has seen since the power came, and how many writes are not stable.
  var state: (isOn: Bool, writes: Int, flushes: Int, unstable: Int) {
    get throws {
      let words = try power.ask("state").split(separator: " ")
      try #require(words.count == 4)
      return (words[0] == "on", Int(words[1]) ?? -1, Int(words[2]) ?? -1, Int(words[3]) ?? -1)
    }
  }

  /// There is power again, over what survived; it fails before, if it has not.
  ///
  /// Whoever used the disk must have ended.
  /// - Parameter seed: What is lost, if the power has not failed yet.
  func restore(seed: UInt64 = 0) throws {
    try power.ask("cut 0 \(seed) 0")
    // The kernel lets files go a moment after their process: operations of an io_uring hold them until then.
    if contents == .ext4 {
      try #require(spin { (try? SystemProgram.run("umount", directory + "/files")) != nil }, "the file system stays in use")
    }
    let device = device
    try SystemProgram.run("losetup", "--detach", device)
    // What is in its page cache would otherwise be written when there is power.
    try #require(spin { (try? SystemProgram.run("losetup", "--associated", directory + "/disk")) == "" }, "\(device) stays")
    try power.ask("power")
    try attach()
    if contents == .ext4 { try mount() }
  }

  /// Lets go of what a run left that was killed whole, with the processes that clear up behind one: what is mounted of disks that nobody
  /// serves any more.
  static func releaseLeftovers() {
    for line in (try? ProcessMaps.readFile("/proc/mounts"))?.split(separator: "\n") ?? [] {
      let fields = line.split(separator: " ").map(String.init)
      guard fields.count > 1, fields[0].hasPrefix("/dev/loop") else { continue }
      guard fields[1].contains("/pinkit-disk-"), fields[1].hasSuffix("/files") else { continue }
      let disk = fields[1].dropLast("files".count) + "disk"
      guard unsafe access(String(disk), F_OK) != 0, errno == ENOTCONN else { continue }
      _ = try? SystemProgram.run("umount", "-l", fields[1])
      _ = try? SystemProgram.run("losetup", "--detach", fields[0])
      _ = try? SystemProgram.run("umount", "-l", String(disk))
      try? FileManager.default.removeItem(atPath: String(disk.dropLast("/disk".count)))
    }
  }

  private func attach() throws {
    // Through the page cache of the file one would see what the disk has forgotten.
    let device = try SystemProgram.run("losetup", "--direct-io=on", "--find", "--show", directory + "/disk")
    attached.withLock { $0 = device }
  }

  private func mount() throws {
    // Without what ext4 does for programs that forget to sync before they rename.
    try SystemProgram.run("mount", "-t", "ext4", "-o", "noauto_da_alloc", device, directory + "/files")
  }
}

/// Numbers that a child leaves for its parent: they survive a SIGKILL.
final class ChildNotes: Sendable {
  let path: String
  private let address: UInt64
  private static let count = 1024

  /// They go with the disk, but do not lie on it.
  convenience init(beside disk: ForgetfulDisk) throws {
    let path = "\(disk.directory)/notes"
    try RawFile.write([UInt8](repeating: 0, count: Self.count * 8), path)
    try self.init(path: path)
  }

  /// In the child.
  init(path: String) throws {
    self.path = path
    address = unsafe ct_map_file(path, UInt64(Self.count * 8))
    try #require(address != 0)
  }

  deinit { _ = unsafe munmap(UnsafeMutableRawPointer(bitPattern: UInt(address)), Self.count * 8) }

  subscript(index: Int) -> UInt64 {
    get { ct_load_word(address + UInt64(index * 8)) }
    set { ct_store_word(address + UInt64(index * 8), newValue) }
  }

  func forget() { for index in 0..<Self.count { self[index] = 0 } }
}
