internal import Foundation
internal import Glibc
internal import PinKit
internal import Terminal

/// A library closes all descriptors, as many do before they start something, and the numbers go to others.
struct BesideDescriptorScene: BesideScene {
  let title = "a loop closes descriptors"
  let needs: [DemoNeed] = [.mechanism(.handlerThread, .anonymous), .mechanism(.handlerThread, .pool)]
  let name = "descriptors"
  let contract = "K5"
  let story =
    "close(2) for all numbers from 3 to 255, and in another round for all that there can be: descriptors of whoever has them. The program opens files of its own, which get "
    + "their numbers. A clone is written, a tracker collects, a snapshot is read, and everything is closed."

  struct Outcome: Codable {
    struct Round: Codable {
      var name: String
      var touched = 0
      var files = 0
      /// What was right, and what said why not.
      var done: [String] = []
      var refused: [String] = []
      var asked = 0
      var wrong: [String] = []
    }
    var rounds: [Round] = []
  }

  func perform() throws -> Outcome {
    var outcome = Outcome()
    var limit = rlimit()
    _ = unsafe getrlimit(__rlimit_resource_t(7), &limit)
    let highest = CInt(min(limit.rlim_cur, 1 << 20)) - 1
    for (name, last) in [("3 to 255", 255), ("all from 3 on", highest)] {
      outcome.rounds.append(try Self.round(name, last))
    }
    return outcome
  }

  private static let pages = 256

  private static func round(_ name: String, _ last: CInt) throws -> Outcome.Round {
    var round = Outcome.Round(name: name)
    let space = try DemoSpace.make(expectsFailures: true)
    let template = try space.map(.pool, pages: pages)
    for page in 0..<pages { try BesidePages.write(template, page, 0) }
    let clone = try template.clone()
    let heap = try space.map(.anonymous, pages: pages)
    for page in 0..<pages { try BesidePages.write(heap, page, 0) }
    let tracker = try heap.trackWrites(.handlerThread)
    _ = try tracker.collect()
    let snapshot = try heap.snapshot()
    for descriptor in 3...last { close(descriptor) }
    let files = try (0..<64).map { _ in try BesideFile() }
    func attempt(_ what: String, _ body: () throws -> Bool) {
      round.asked += 1
      do {
        if try body() { round.done.append(what) } else { round.wrong.append(what) }
      } catch { round.refused.append("\(what): \(error)") }
    }
    // Without its userfaultfd a clone has nothing that would keep its writes from the template: it fails, and is not written.
    if last < 256 {
      attempt("the clone is written") {
        for page in 0..<pages { try BesidePages.write(clone, page, 1) }
        return try (0..<pages).allSatisfy { page in
          try clone.load(fromByteOffset: page * 4096, as: UInt64.self) == BesidePages.word(page, 1)
            && template.load(fromByteOffset: page * 4096, as: UInt64.self) == BesidePages.word(page, 0)
        }
      }
    }
    attempt("another clone is made") {
      let second = try template.clone()
      return try second.load(fromByteOffset: 4096, as: UInt64.self) == BesidePages.word(1, 0)
    }
    attempt("writes are collected") {
      for page in stride(from: 0, to: pages, by: 7) { try BesidePages.write(heap, page, 1) }
      let found = try tracker.collect()
      return stride(from: 0, to: pages, by: 7).allSatisfy { found.contains($0) }
    }
    attempt("the snapshot is read") {
      try BesidePages.wrong(snapshot, Array(repeating: 0, count: pages), in: 0..<pages) == 0
    }
    attempt("the space is closed") {
      snapshot.close()
      try space.close()
      return true
    }
    round.files = files.count
    round.touched = files.count { !$0.isUntouched }
    for file in files { close(file.descriptor) }
    return round
  }

  func judge(_ outcome: Outcome) -> [Claim] {
    outcome.rounds.flatMap { round in
      [
        Claim(
          contract: "K5", claim: "\(round.name): no file of the program's was touched",
          holds: round.files > 0 && round.touched == 0,
          evidence: "\(round.touched) of \(counted(round.files, "file")) are not what they were."),
        Claim(
          contract: "K5", claim: "\(round.name): what is asked for is done, or says why not",
          holds: round.wrong.isEmpty && round.asked > 3 && round.done.count + round.refused.count == round.asked
            && round.done.contains("the space is closed"),
          evidence: "Done: \(round.done.joined(separator: ", ")). "
            + (round.refused.isEmpty ? "" : "Refused: \(round.refused.joined(separator: "; ")). ")
            + (round.wrong.isEmpty ? "" : "Wrong: \(round.wrong.joined(separator: ", ")).")),
      ]
    }
  }
}
