import ArgumentParser
import CTestSupport
import Foundation
import Terminal
import Testing

@testable import PinKit
@testable import Reports
@testable import pinctl

/// A child whose memory is known; ends with the value.
private final class KnownProcess {
  let pid: pid_t
  let known: ct_known

  init() throws {
    var path = Array("/var/tmp/pinkit-known-XXXXXX".utf8CString)
    let file = unsafe mkstemp(&path)
    try #require(file >= 0)
    unsafe unlink(path)
    defer { close(file) }
    // Page by page: of a large write the kernel makes large folios, which are dirty as a whole.
    let content = [UInt8](repeating: 1, count: 4096)
    for _ in 0..<16 { try #require(unsafe write(file, content, content.count) == content.count) }
    try #require(fsync(file) == 0)
    var known = ct_known()
    pid = unsafe ct_start_known(file, &known)
    self.known = known
    try #require(pid > 0)
  }

  deinit { ct_end(pid) }

  func range(_ start: UInt64, _ pages: Int) -> String {
    String(start, radix: 16) + "-" + String(start + UInt64(pages * 4096), radix: 16)
  }
}

@Suite(
  "pinctl inspect", .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer has no children of fork()"))
struct InspectTests {
  private static let isRoot = geteuid() == 0
  private static let isOnDisk = !ProcessMaps.isTmpfs("/var/tmp")

  private func report(_ arguments: [String]) throws -> InspectReport {
    let (code, output, error) = try pinctl(["inspect", "--json"] + arguments)
    try #require(code == 0, "\(error)")
    return try JSONDecoder().decode(InspectReport.self, from: output)
  }

  /// What is known of each page of a range; empty for pages that have nothing.
  private func pages(_ process: KnownProcess, _ start: UInt64, _ count: Int) throws -> [[String]] {
    let report = try report(["\(process.pid)", process.range(start, count)])
    let found = try #require(report.pages)
    #expect(found.range == AddressRange(start: UInt(start), count: count * 4096))
    var pages = [[String]](repeating: [], count: count)
    for run in found.runs {
      let first = Int(run.start - UInt(start)) / 4096
      for page in first..<first + run.pages { pages[page] = run.state }
    }
    return pages
  }

  @Test("pages that were written are there, and no others") func present() throws {
    let process = try KnownProcess()
    let found = try pages(process, process.known.small, 64)
    for page in 0..<64 {
      #expect(found[page].contains("present") == (page < 32 && page % 2 == 0), "page \(page)")
      #expect(!found[page].contains("file") && !found[page].contains("shared") && !found[page].contains("swapped"))
    }
  }

  @Test(
    "the dirty pages of a file are those that were written", .enabled(if: isRoot, "needs root: /proc/kpageflags"),
    .enabled(if: isOnDisk, "needs /var/tmp on a disk"))
  func dirty() throws {
    let process = try KnownProcess()
    let found = try pages(process, process.known.file, 16)
    for page in 0..<8 {
      #expect(found[page].contains("file") && found[page].contains("present"))
      // Written back meanwhile they would be clean.
      let isDirty = found[page].contains("dirty") || found[page].contains("writeback")
      #expect(isDirty == (page < 4), "page \(page): \(found[page])")
    }
  }

  @Test("pages that are mapped twice are shared") func sharedPages() throws {
    let process = try KnownProcess()
    let found = try pages(process, process.known.twice, 8)
    for page in 0..<8 {
      #expect(found[page].contains("shared") == (page < 4), "page \(page): \(found[page])")
      #expect(found[page].contains("present") == (page < 6))
    }
  }

  @Test("K1: map counts are the kernel's: twice, once", .enabled(if: isRoot, "needs root: /proc/kpagecount"))
  func mapCounts() throws {
    let process = try KnownProcess()
    let runs = try #require(try report(["\(process.pid)", process.range(process.known.twice, 8)]).pages?.runs)
    #expect(!runs.isEmpty)
    for run in runs { #expect(run.mapCount == (run.start < UInt(process.known.twice) + 4 * 4096 ? 2 : 1)) }
  }

  @Test("a huge page is huge") func hugePage() throws {
    let process = try KnownProcess()
    let mapping = try #require(
      try report(["\(process.pid)"]).mappings.first { $0.details.mapping.range.contains(UInt(process.known.huge)) })
    let huge = try pages(process, process.known.huge, 512)
    let isHuge = mapping.details.transparentHuge > 0
    #expect(huge.allSatisfy { $0.contains("huge") == isHuge })
    if !isHuge { try Test.cancel("the kernel gave no huge page") }
  }

  @Test("write-protected pages are write-protected") func protected() throws {
    let process = try KnownProcess()
    try #require(process.known.is_guarded == 1)
    let guarded = try pages(process, process.known.guarded, 8)
    for page in 0..<8 { #expect(guarded[page].contains("write-protected") == (page < 4), "page \(page)") }
    #expect(
      try report(["\(process.pid)"]).mappings.contains {
        $0.details.mapping.range.contains(UInt(process.known.guarded)) && $0.details.isWriteProtectable
      })
  }

  @Test("1 TiB of sparse memory is drawn at once, in a few lines, with its one page") func sparse() throws {
    let process = try KnownProcess()
    let began = ContinuousClock.now
    let (code, output, error) = try pinctl(["inspect", "\(process.pid)", String(process.known.sparse, radix: 16)])
    let text = String(decoding: output, as: UTF8.self)
    #expect(code == 0, "\(error)")
    #expect(text.contains("268,435,456 pages of 4K; a character is 262,144 pages (1G)"))
    // The kernel marks a page as dirty when it looks whether it can be reclaimed.
    #expect(text.contains("pages: 1 present\n") || text.contains("pages: 1 present, 1 dirty\n"))
    let drawn = text.split(separator: "\n").filter { $0.contains("..........") }.map { $0.dropFirst(13) }
    #expect(drawn.count <= 24 && drawn.allSatisfy { $0.count <= 80 })
    #expect(drawn.joined().filter { $0 != "." } == "a")
    #expect(ContinuousClock.now - began < .seconds(20))
  }

  @Test("the overview has a line for each mapping, says who else maps a file, and writes no escape codes")
  func overview() throws {
    let process = try KnownProcess()
    let found = try report(["\(process.pid)"])
    #expect(found.pid == process.pid && found.name == "known (odd) x" && found.pages == nil)
    let library = try #require(found.mappings.first { $0.details.mapping.path.hasSuffix("libc.so.6") })
    #expect(library.holders.contains(getpid()))
    let sparse = try #require(
      found.mappings.first { $0.details.mapping.range.contains(UInt(process.known.sparse)) })
    #expect(sparse.details.mapping.range.count == 1 << 40 && sparse.details.resident == 4096)
    let (_, output, _) = try pinctl(["inspect", "\(process.pid)"])
    let text = String(decoding: output, as: UTF8.self)
    #expect(!text.contains("\u{1b}"))
    for mapping in found.mappings {
      #expect(text.contains("\n" + String(mapping.details.mapping.range.start, radix: 16).padded(to: 13)))
    }
    #expect(text.contains("known (odd) x, process \(process.pid)"))
  }

  @Test("a process that has ended, or never was, or has no memory, is a typed error") func ended() throws {
    let process = try KnownProcess()
    let observed = try ObservedProcess(process.pid)
    var pages = try observed.pages()
    let start = UInt(process.known.small)
    kill(process.pid, SIGKILL)
    while (try? !ProcessMaps.readFile("/proc/\(process.pid)/maps").isEmpty) == true { sched_yield() }
    let late = #expect(throws: PinError.self) { _ = try observed.mappings() }
    #expect([.notFound, .unsupported].contains(late?.code))
    var seen = 0
    var code: PinError.Code?
    do throws(PinError) {
      try pages.scan(AddressRange(start: start, count: 64 * 4096)) { _ in seen += 1 }
    } catch { code = error.code }
    #expect(seen == 0 && (code == .notFound || code == nil))

    let (status, _, error) = try pinctl(["inspect", "4194305"])
    #expect(status == 1 && error.contains("not found") && error.contains("has just ended"))
    let (thread, _, complaint) = try pinctl(["inspect", "2"])
    #expect(thread == 1 && complaint.contains("It has no memory of its own"))
  }

  @Test(
    "bad input is refused by name",
    arguments: ["", "zz", "1-", "-1", "5000-4000", "5000-5000", "1-2-3", "1ffffffffffffffff"])
  func badRange(_ range: String) throws {
    let (code, _, error) = try pinctl(["inspect", "\(getpid())", range])
    #expect(code == 64, "\(error)")
    #expect(error.contains("Usage"))
  }

  @Test("all addresses at once are those that are mapped") func everything() throws {
    let process = try KnownProcess()
    let found = try report(["\(process.pid)", "0-ffffffffffffffff"])
    let range = try #require(found.pages?.range)
    #expect(range.start == found.mappings[0].details.mapping.range.start && range.end < 1 << 63)
    #expect(found.pages!.runs.contains { $0.start == UInt(process.known.small) })
    #expect(try pinctl(["inspect", "\(process.pid)", "ffffffffff600000"]).code == 0)
  }

  @Test("where nothing is mapped, and process numbers that are none") func nothing() throws {
    let (code, _, error) = try pinctl(["inspect", "\(getpid())", "1000"])
    #expect(code == 1 && error.contains("out of bounds") && error.contains("maps nothing there"))
    #expect(try pinctl(["inspect", "0"]).error.contains("Process numbers begin at 1"))
    #expect(try pinctl(["inspect", "one"]).code == 64)
  }

  @Test(
    "without root it shows processes of its user and says what it cannot see; others it may not",
    .enabled(if: isRoot, "needs root, to stop being it"))
  func withoutRoot() async throws {
    let parent = getpid()
    let result = try await #require(
      processExitsWith: .exitCode(0), observing: [\.standardOutputContent]
    ) { [parent = parent as pid_t] in
      try #require(ct_become_nobody() == 0)
      try #require(ct_show_in_proc() == 0)
      let process = try KnownProcess()
      let arguments = ["inspect", "\(process.pid)", process.range(process.known.small, 64)]
      do throws(PinError) {
        let other = try ObservedProcess(parent)
        _ = try other.mappings()
        print("SAW THE PARENT")
      } catch { print("parent: \(error.code)") }
      do {
        var command = try Pinctl.parseAsRoot(arguments)
        try command.run()
      } catch { print("failed: \(error)") }
    }
    let text = String(decoding: result.standardOutputContent, as: UTF8.self)
    #expect(text.contains("parent: permission denied"))
    #expect(text.contains("Not seen: how often pages are mapped"))
    #expect(text.contains("Not seen: which pages are dirty"))
    #expect(text.contains("pages: 16 present"))
    #expect(text.contains("a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a."))
  }
}
