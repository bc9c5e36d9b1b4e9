import CTestSupport
import CUffd
import Glibc
import Testing

@testable import PinKit
@testable import PinKitCrypto

@Suite("Key pages") struct KeyPageTests {
  /// From now on this process is on a kernel without memfd_secret(2).
  static func refuseSecretMemory() { cuffd_inject(CInt(cuffd_call_memfd_secret.rawValue), ENOSYS, 0, .max) }

  /// Whether the kernel that runs here gives memfd_secret(2) memory.
  static let hasSecretMemory = (try? KeyPage())?.protection == .secretMemory
  private static let obstacle: String? = hasSecretMemory ? nil : "this kernel gives no memfd_secret(2) memory"

  /// The part of smaps that is about the page at `address`.
  static func lines(of address: UInt) throws -> [Substring] {
    let all = try ProcessMaps.readFile("/proc/self/smaps").split(separator: "\n")
    let isHead = { (line: Substring) in ProcessMapping(line: line)?.range.contains(address) ?? false }
    guard let head = all.firstIndex(where: isHead) else { return [] }
    let rest = all[(head + 1)...]
    return Array(all[head..<(rest.firstIndex { ProcessMapping(line: $0) != nil } ?? rest.endIndex)])
  }

  fileprivate static func address(of page: borrowing KeyPage) -> UInt { unsafe UInt(bitPattern: page.start) }

  @Test("Random bytes differ from page to page, and from zeros", arguments: [1, 32, 5000])
  func random(_ count: Int) throws {
    let page = try KeyPage(randomByteCount: count)
    let other = try KeyPage(randomByteCount: count)
    let first = try unsafe page.withUnsafeBytes { (bytes) throws(PinError) in unsafe Array(bytes) }
    let second = try unsafe other.withUnsafeBytes { (bytes) throws(PinError) in unsafe Array(bytes) }
    #expect(first.count == count && page.count == count)
    if count > 8 { #expect(first != second && first.suffix(8).contains { $0 != 0 }) }
  }

  @Test("Bytes that are moved there are wiped where they were")
  func moving() throws {
    let bytes = randomBytes(32)
    let source = UnsafeMutableRawBufferPointer.allocate(byteCount: 32, alignment: 1)
    defer { unsafe source.deallocate() }
    unsafe source.copyBytes(from: bytes)
    let page = try unsafe KeyPage(moving: source)
    let moved = try unsafe page.withUnsafeBytes { (bytes) throws(PinError) in unsafe Array(bytes) }
    let left = unsafe Array(source)
    #expect(moved == bytes)
    #expect(left.allSatisfy { $0 == 0 })
  }

  @Test(
    "It is locked, in no core dump, in no child, read-only, and has nothing beside it",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer locks no memory"), arguments: [true, false])
  func kernelsView(_ isSecretMemory: Bool) async throws {
    try Test.skip(if: isSecretMemory ? Self.obstacle : nil)
    await #expect(processExitsWith: .success) { [isSecretMemory = isSecretMemory as Bool] in
      if !isSecretMemory { Self.refuseSecretMemory() }
      let page = try KeyPage(randomByteCount: 5000)
      let address = Self.address(of: page)
      check(page.protection, is: isSecretMemory ? .secretMemory : .lockedMemory)
      let lines = try Self.lines(of: address)
      let flags = lines.first { $0.hasPrefix("VmFlags:") }?.split(separator: " ") ?? []
      for flag in ["rd", "lo", "dc", "dd"] { check(flags.contains(Substring(flag)), "\(flag) is not in \(flags)") }
      check(!flags.contains("wr"), "it can be written: \(flags)")
      let locked = lines.first { $0.hasPrefix("Locked:") } ?? ""
      check(locked.split(separator: " ").dropFirst().first ?? "", is: "8")
      let around = AddressRange(start: address - 4096, count: 4 * 4096)
      let mappings = try ProcessMaps.mappings(in: around)
      check(mappings.map(\.isReadable), is: [false, true, false])
      check(mappings.map { $0.range.clamped(to: around).count }, is: [4096, 8192, 4096])
    }
  }

  @Test("A write to it, and an access beside it, ends in SIGSEGV", arguments: [0, -1, 4096])
  func guards(_ offset: Int) async {
    await #expect(processExitsWith: .signal(SIGSEGV)) { [offset = offset as Int] in
      _ = ct_default(SIGSEGV)
      let page = try KeyPage()
      let address = UInt64(Self.address(of: page))
      if offset == 0 { ct_store(address, 1) } else { _ = ct_load(UInt64(Int64(address) + Int64(offset))) }
      check(false, "it went through")
      page.close()
    }
  }

  @Test(
    "What is in secret memory cannot be read through /proc, nor by another process",
    .skipped(if: obstacle))
  func unreadable() throws {
    let page = try KeyPage()
    let address = UInt64(Self.address(of: page))
    var bytes: [UInt8] = [0, 0, 0, 0]
    let memory = try ProcessMemory()
    let direct = unsafe bytes.withUnsafeMutableBytes { unsafe memory.read(UInt(address), into: $0.baseAddress!, count: 4) }
    #expect(direct == -EIO)
    let other = unsafe bytes.withUnsafeMutableBytes { unsafe ct_read_of_process(getpid(), address, $0.baseAddress!, 4) }
    #expect(other == -Int(EFAULT))
    #expect(bytes == [0, 0, 0, 0])
  }

  @Test("Closing wipes it, and dropping it does; then it gives nothing", arguments: [true, false], [true, false])
  func wiped(_ isSecretMemory: Bool, _ isDropped: Bool) async throws {
    try Test.skip(if: isSecretMemory ? Self.obstacle : nil)
    await #expect(processExitsWith: .success) { [isSecretMemory = isSecretMemory as Bool, isDropped = isDropped as Bool] in
      if !isSecretMemory { Self.refuseSecretMemory() }
      var page: KeyPage? = try KeyPage(randomByteCount: 64)
      let address = Self.address(of: page!)
      if isDropped {
        // So that what was wiped is still there to be looked at.
        cuffd_inject(CInt(cuffd_call_munmap.rawValue), EINVAL, 0, 1)
        page = nil
        check(cuffd_injected(), is: 1)
      } else {
        page!.close()
        let code = thrown { () throws(PinError) in try unsafe page!.withUnsafeBytes { _ in } }
        check(code, is: .keyGone)
        page!.close()
      }
      let range = AddressRange(start: address, count: 4096)
      let mappings = try ProcessMaps.mappings(in: range)
      check(mappings.allSatisfy { !$0.isReadable }, "it can be read")
      check(Memory.protect(range, .read), is: 0)
      for offset in 0..<64 as Range<UInt64> { check(ct_load(UInt64(address) + offset), is: 0) }
    }
  }

  struct Failure: Error {}

  @Test("What was written before filling failed is wiped")
  func failedFilling() async {
    await #expect(processExitsWith: .success) {
      let secret = MemoryScan(count: 64)
      Self.refuseSecretMemory()
      let code = thrown { () throws(PinError) in
        _ = try unsafe KeyPage(count: 64) { (bytes) throws(PinError) in
          unsafe secret.place(in: bytes)
          cuffd_inject(CInt(cuffd_call_munmap.rawValue), EINVAL, 0, 1)
          throw PinError(.cancelled, operation: "filling")
        }
      }
      check(code, is: .cancelled)
      check(cuffd_injected(), is: 1)
      if ct_has_sanitizer() == 0 { secret.expectNowhere("after filling failed") }
    }
  }

  @Test(
    "A child of fork() has no key: its calls throw, touching it is SIGSEGV, and its dropping harms nobody",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer has no child of fork()"), arguments: [true, false])
  func forked(_ isSecretMemory: Bool) async throws {
    try Test.skip(if: isSecretMemory ? Self.obstacle : nil)
    await #expect(processExitsWith: .success) { [isSecretMemory = isSecretMemory as Bool] in
      _ = ct_default(SIGSEGV)
      if !isSecretMemory { Self.refuseSecretMemory() }
      let page = try KeyPage()
      let address = UInt64(Self.address(of: page))
      let sealer = try AESGCMSealer()
      let sealed = SealedPage()
      try sealed.seal(sealer)
      check(childStatus { CInt(ct_load(address)) }, is: 1000 + SIGSEGV)
      let status = childStatus {
        guard thrown(by: { () throws(PinError) in try unsafe page.withUnsafeBytes { _ in } }) == .notInherited else {
          return 1
        }
        guard sealed.codeOfOpening(sealer) == .notInherited, sealed.codeOfSealing(sealer) == .notInherited else { return 2 }
        page.close()
        sealer.close()
        return 0
      }
      check(status, is: 0)
      try sealed.open(sealer)
      check(thrown(by: { () throws(PinError) in try unsafe page.withUnsafeBytes { _ in } }), is: nil)
    }
  }

  @Test(
    "Without leave to lock memory there is no key page, and the error says which limit",
    .enabled(if: getuid() == 0, "needs root, to stop being it"),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer locks no memory"), arguments: [true, false])
  func lockLimit(_ isSecretMemory: Bool) async throws {
    try Test.skip(if: isSecretMemory ? Self.obstacle : nil)
    await #expect(processExitsWith: .success) { [isSecretMemory = isSecretMemory as Bool] in
      _ = Memory.pageSize
      check(ct_limit_locked_memory(0), is: 0)
      check(ct_become_nobody(), is: 0)
      if !isSecretMemory { Self.refuseSecretMemory() }
      let before = ct_mapping_count()
      do throws(PinError) {
        _ = try KeyPage()
        Issue.record("it was made")
      } catch {
        check(error.code, is: .limitReached)
        check(error.description.contains("RLIMIT_MEMLOCK"), "\(error)")
      }
      check(ct_mapping_count(), is: before)
      check(thrown { () throws(PinError) in _ = try AESGCMSealer() }, is: .limitReached)
    }
  }

  @Test("Errors of the calls below are typed, and leave no mapping and no descriptor behind")
  func errors() async {
    await #expect(processExitsWith: .success) {
      for (call, errno, code) in [
        (cuffd_call_memfd_secret, EMFILE, PinError.Code.limitReached), (cuffd_call_mmap, ENOMEM, .outOfMemory),
        (cuffd_call_madvise, EINVAL, .unsupported), (cuffd_call_mprotect, ENOMEM, .outOfMemory),
      ] {
        let before = (ct_mapping_count(), ct_descriptor_count())
        // Often, as the heap may grow by a mapping or two, and others in the process open files.
        for _ in 0..<40 {
          cuffd_inject(CInt(call.rawValue), errno, 0, 1)
          check(thrown { () throws(PinError) in _ = try KeyPage() }, is: code, "\(call)")
          check(cuffd_injected(), is: 1)
        }
        check(ct_mapping_count() < before.0 + 20, "mappings are left of \(call)")
        check(ct_descriptor_count() < before.1 + 20, "descriptors are left of \(call)")
      }
      check(thrown { () throws(PinError) in _ = try KeyPage(randomByteCount: 0) }, is: .invalidArgument)
    }
  }
}
