import CUffd
import Glibc
import SystemPackage
import Testing

@testable import PinKit

private let hasUserfaultfd = (try? Userfaultfd(features: [], access: [.device, .systemCall])) != nil
private let hasUserModeOnly = (try? Userfaultfd(features: [.wpAsync], access: [.userModeOnly])) != nil
private let page = Memory.pageSize

@Suite("Userfaultfd", .enabled(if: hasUserfaultfd, "needs a userfaultfd that also serves system calls"))
final class UserfaultfdTests {
  /// A page of sevens to copy from.
  private let source: Mapping
  private let target: Mapping
  private let descriptor: Userfaultfd

  init() throws {
    source = try Mapping(count: 4 * page)
    unsafe fill(source.range, with: 7)
    target = try Mapping(count: 4 * page)
    descriptor = try Userfaultfd(features: [.eventRemove])
    try descriptor.register(target.range, for: .missing)
  }

  private func pages(_ range: Range<Int>) -> AddressRange {
    AddressRange(start: target.range.start + UInt(range.lowerBound * page), count: range.count * page)
  }

  @Test("a fill of missing pages is done, and its bytes are there")
  func done() throws {
    #expect(try descriptor.copy(from: source.range.start, to: target.range) == .done)
    #expect(unsafe byte(at: target.range.end - 1) == 7)
  }

  @Test("a second fill of a page exists, and leaves the page as it was")
  func exists() throws {
    #expect(try descriptor.zero(pages(0..<1)) == .done)
    #expect(try descriptor.copy(from: source.range.start, to: pages(0..<1)) == .exists)
    #expect(unsafe byte(at: target.range.start) == 0)
  }

  @Test("a fill that meets a present page is partial by the bytes before it")
  func partial() throws {
    #expect(try descriptor.zero(pages(2..<3)) == .done)
    #expect(try descriptor.copy(from: source.range.start, to: target.range) == .partial(bytes: 2 * page))
    #expect(unsafe byte(at: pages(1..<2).start) == 7)
  }

  @Test("a fill while a discard is in flight says retry, and is done once its originator has run")
  func retry() throws {
    #expect(try descriptor.copy(from: source.range.start, to: target.range) == .done)
    let discarded = UnsafeMutablePointer<AddressRange>.allocate(capacity: 1)
    unsafe discarded.initialize(to: pages(0..<1))
    defer { unsafe discarded.deallocate() }
    let originator = try unsafe KernelThread(
      name: "discard", context: discarded,
      body: { context in
        let range = unsafe context!.assumingMemoryBound(to: AddressRange.self).pointee
        _ = cuffd_madvise(UInt64(range.start), UInt64(range.count), Memory.Advice.dontNeed.rawValue)
      }, onExit: { _ in })
    // Readable means that the event is queued: the discard waits for its reader, and the address space is changing.
    var waiting = pollfd(fd: descriptor.descriptor, events: Int16(POLLIN), revents: 0)
    #expect(unsafe poll(&waiting, 1, 10_000) == 1)
    #expect(try descriptor.copy(from: source.range.start, to: pages(0..<1)) == .retry)
    var batch = FaultBatch()
    #expect(batch.read(from: descriptor.descriptor) == 0)
    #expect(batch.count == 1)
    #expect(batch[0] == .remove(pages(0..<1)))
    originator.join()
    #expect(try descriptor.copy(from: source.range.start, to: pages(0..<1)) == .done)
  }

  @Test("an operation on a range that is not registered any more says gone")
  func gone() throws {
    try descriptor.unregister(target.range)
    #expect(try descriptor.copy(from: source.range.start, to: pages(0..<1)) == .gone)
    #expect(try descriptor.writeProtect(pages(0..<1)) == .gone)
  }

  @Test("a range that another userfaultfd has is in use")
  func registeredTwice() throws {
    let second = try Userfaultfd(features: [])
    let error = #expect(throws: PinError.self) { try second.register(target.range, for: .missing) }
    #expect(error?.code == .inUse)
    #expect(error?.errno == .resourceBusy)
    #expect(error?.range == target.range)
  }

  @Test("a feature that the kernel does not know is not supported")
  func unknownFeature() {
    let error = #expect(throws: PinError.self) { _ = try Userfaultfd(features: .init(rawValue: 1 << 62)) }
    #expect(error?.code == .unsupported)
  }

  @Test("the kernel's features include write protection, and all have names")
  func features() throws {
    let features = try Userfaultfd.availableFeatures()
    #expect(features.contains(.pagefaultFlagWP))
    #expect(Userfaultfd.Features.move.description == "MOVE")
  }
}

@Suite("Userfaultfd without a kernel")
struct UserfaultfdTypeTests {
  @Test("only a count above zero is progress; a repeated errno is not", arguments: [nil, 0, -17, -11] as [Int64?])
  func signedProgress(progress: Int64?) {
    #expect(IoctlOutcome(result: -17, progress: progress, length: 8192) == .exists)
    #expect(IoctlOutcome(result: -11, progress: progress, length: 8192) == .retry)
    #expect(IoctlOutcome(result: -2, progress: progress, length: 8192) == .gone)
    #expect(IoctlOutcome(result: -3, progress: progress, length: 8192) == .gone)
    #expect(IoctlOutcome(result: 0, progress: progress, length: 8192) == .done)
    #expect(IoctlOutcome(result: -14, progress: progress, length: 8192) == nil)
    #expect(IoctlOutcome(result: -11, progress: 4096, length: 8192) == .partial(bytes: 4096))
  }

  @Test("an event from the future survives decoding")
  func unknownEvent() {
    let message = FaultMessage(cuffd_message(event: 0x7f, a: .max, b: 1, c: .max))
    #expect(message == .unknown(event: 0x7f))
  }

  @Test("every known event decodes to its case")
  func events() {
    #expect(
      FaultMessage(cuffd_message(event: cuffd_event_pagefault, a: 3, b: 0x5000, c: 42))
        == .pageFault(address: 0x5000, flags: [.write, .writeProtect], thread: 42))
    #expect(FaultMessage(cuffd_message(event: cuffd_event_fork, a: 9, b: 0, c: 0)) == .fork(descriptor: 9))
    #expect(
      FaultMessage(cuffd_message(event: cuffd_event_remap, a: 0x1000, b: 0x9000, c: 4096))
        == .remap(from: 0x1000, to: 0x9000, length: 4096))
    #expect(
      FaultMessage(cuffd_message(event: cuffd_event_unmap, a: 0x1000, b: 0x3000, c: 0))
        == .unmap(AddressRange(start: 0x1000, end: 0x3000)))
  }

  @Test("where every way is refused, the error names all three with what each said")
  func refusals() async {
    await #expect(processExitsWith: .success) {
      cuffd_inject(CInt(cuffd_call_open.rawValue), 1, 0, 3)
      let error = #expect(throws: PinError.self) { _ = try Userfaultfd(features: []) }
      #expect(error?.code == .permissionDenied)
      for way in Userfaultfd.Access.allCases { #expect(error?.advice.contains(way.name) == true) }
    }
  }

  @Test(
    "without any privilege, asynchronous write protection lets system calls write",
    .enabled(if: hasUserModeOnly, "needs UFFD_USER_MODE_ONLY with WP_ASYNC"))
  func userModeAsynchronous() throws {
    let memory = try Mapping(count: page)
    let descriptor = try Userfaultfd(features: [.wpAsync, .wpUnpopulated], access: [.userModeOnly])
    try descriptor.register(memory.range, for: .writeProtect)
    #expect(try descriptor.writeProtect(memory.range) == .done)
    let file = try MemoryFile(name: "sevens", size: page)
    try file.write([UInt8](repeating: 7, count: page).span, at: 0)
    let pointer = unsafe UnsafeMutableRawPointer(bitPattern: memory.range.start)!
    #expect(unsafe cuffd_pread(file.descriptor, pointer, page, 0) == page)
    #expect(unsafe byte(at: memory.range.start) == 7)
  }
}
