import Glibc
import Testing

@testable import PinKit

/// Threads that make the kernel move pages about, for as long as they are asked to.
final class Compactors: Sendable {
  private static let path = "/proc/sys/vm/compact_memory"
  private let isOver = Shared()
  private let rounds = Shared()
  private let threads: [TestThread]

  /// Root's alone, and not of every kernel.
  static let canRun: Bool = {
    let descriptor = unsafe open(path, O_WRONLY | O_CLOEXEC)
    if descriptor >= 0 { close(descriptor) }
    return descriptor >= 0
  }()

  init(_ count: Int = 1) {
    threads = (0..<count).map { [isOver, rounds] _ in
      TestThread {
        let descriptor = unsafe open(Self.path, O_WRONLY | O_CLOEXEC)
        defer { close(descriptor) }
        while isOver.value == 0, unsafe pwrite(descriptor, "1", 1, 0) == 1 { rounds.add() }
      }
    }
  }

  /// How often memory was compacted.
  func stop() throws -> Int {
    isOver.value = 1
    for thread in threads { try thread.join() }
    return rounds.value
  }
}

/// Memory whose pages lie between the frames of others that have just been freed: there is something to compact.
enum Scattered {
  /// Calls `body` with a region whose pages with an even number hold version 1, and whose odd ones were never touched.
  static func with(_ subject: Subject, pages: Int, _ body: (Region) throws -> Void) throws {
    let space = try AddressSpace.forTests()
    try subject.with(space, pages: pages) { region in
      let other = try Mapping(count: pages / 2 * Memory.pageSize)
      try Memory.advise(other.range, .noHugePages)
      for page in stride(from: 0, to: pages, by: 2) {
        try region.write(version: 1, to: page..<page + 1)
        Memory.touch(other.range.start + UInt(page / 2 * Memory.pageSize))
      }
      _ = consume other
      try body(region)
    }
    try space.close()
  }
}

/// What is done to memory whose pages are being moved.
enum MigrationWork: String, CaseIterable, Sendable {
  case discard, write, sweep, image, track
}

struct MigrationCase: Sendable, CustomTestStringConvertible {
  let combination: Combination
  let work: MigrationWork

  var testDescription: String { "\(work.rawValue), \(combination.testDescription)" }

  static let all: [MigrationCase] = [Subject.anonymous, .adoptedAnonymous, .pool].flatMap { subject in
    subject.mechanisms.flatMap { mechanism in
      MigrationWork.allCases.compactMap { work in
        let isKnown = mechanism != .asynchronous || work == .track
        return isKnown ? MigrationCase(combination: Combination(mechanism: mechanism, subject: subject), work: work) : nil
      }
    }
  }

  /// Once, with new memory; what was found wrong.
  func run(seed: UInt64) throws -> [String] {
    var findings: [String] = []
    try Scattered.with(combination.subject, pages: 4096) { region in
      findings = try work == .track ? track(region, seed: seed) : snapshot(region)
    }
    return findings
  }

  private func snapshot(_ region: Region) throws -> [String] {
    let pages = region.pageCount
    let snapshot = try region.snapshot(.init(mechanism: combination.mechanism, sweep: work == .sweep))
    var findings: [String] = []
    // A page that had bytes must be among them, whatever became of it since.
    func checkRuns(_ moment: String) throws {
      let runs = try snapshot.storedRuns()
      let stored = DirtySet(pageCount: pages, runs: runs)
      let missing = stride(from: 0, to: pages, by: 2).count { !stored.contains($0) }
      if missing > 0 { findings.append("\(moment): \(missing) pages were taken for empty") }
      if region.backing.isPrivateAnonymous, stored.count > pages / 2 {
        findings.append("\(moment): \(stored.count - pages / 2) empty pages were taken for full")
      }
    }
    try checkRuns("at first")
    switch work {
    case .discard: try region.discard(0..<pages)
    case .write: try region.write(version: 2, to: 0..<pages)
    case .sweep:
      // As far as it gets: beside it nobody writes.
      _ = spin(forAtMost: 60) { snapshot.capturedBytes >= pages / 2 * region.pageSize }
      if snapshot.capturedBytes < pages / 2 * region.pageSize { findings.append("the sweep passed over pages") }
    case .image:
      let directory = try ImageDirectory()
      let image = try snapshot.write(to: directory("image"))
      if image.storedPages.count < pages / 2 {
        findings.append("the image lacks \(pages / 2 - image.storedPages.count) pages")
      }
      try region.restore(from: [image])
      let wrong = try (0..<pages).count { page in
        try region.load(fromByteOffset: page * region.pageSize, as: UInt64.self)
          != (page % 2 == 0 ? Pattern.word(page, 1, 0) : 0)
      }
      if wrong > 0 { findings.append("\(wrong) pages were restored wrong") }
    case .track: break
    }
    let wrong = try snapshot.pages(unlike: { $0 % 2 == 0 ? 1 : 0 })
    if !wrong.isEmpty { findings.append("\(wrong.count) pages of the snapshot are wrong, such as \(wrong[0])") }
    try checkRuns("at last")
    return findings
  }

  private func track(_ region: Region, seed: UInt64) throws -> [String] {
    var random = SeededRandom(seed: seed)
    let tracker = try region.trackWrites(combination.mechanism)
    var earlier = DirtySet(pageCount: region.pageCount)
    for round in 0..<20 {
      let written = (0..<region.pageCount).filter { _ in random.chance(10) }
      try region.write(version: 2 + UInt64(round), to: written)
      let found = try tracker.collect()
      let set = DirtySet(pageCount: region.pageCount, runs: written.map { $0..<$0 + 1 })
      let lost = set.subtracting(found).count
      let added = found.subtracting(set).subtracting(combination.mayRepeat ? earlier : DirtySet(pageCount: region.pageCount))
        .count
      earlier.formUnion(found)
      if lost > 0 || added > 0 { return ["round \(round): \(lost) writes were lost, \(added) made up"] }
    }
    return []
  }
}
