internal import PinKit
internal import Terminal

/// Compares copies of the ledger with what its transfers say that it must have been.
final class SnapshotJudge {
  /// What was found about one copy.
  struct Finding: Sendable {
    var cut: LedgerCut
    var pageCount: Int
    /// Pages that are not as they were at the cut.
    var differing: [Int]
    /// Why the cut was no moment of the call.
    var objections: [String]

    var isExact: Bool { differing.isEmpty }
    var isMoment: Bool { objections.isEmpty }
    /// For a claim.
    var evidence: String {
      let transfers = cut.numbers.reduce(0, +)
      return "\(pageCount.grouped) pages compared with \(transfers.grouped) transfers replayed from their numbers: \(cut); "
        + "\(differing.count.grouped) pages differ" + (differing.first.map { "; the first: \($0)" } ?? "")
    }
  }

  private let load: LedgerLoad
  let shadow: LedgerShadow

  /// The writers must have stopped whenever it is asked.
  init(_ load: LedgerLoad) throws {
    self.load = load
    guard let shadow = LedgerShadow(load.ledger) else { throw LedgerFailure("map \(load.ledger.size) bytes", 12) }
    self.shadow = shadow
  }

  /// - Parameter then: Runs while the shadow shows the same moment; gets a function that compares other memory with it.
  func judge(
    _ bytes: UnsafeMutableRawBufferPointer, _ checkpoint: Checkpoint,
    then: ((UnsafeRawBufferPointer) -> [Int]) throws -> Void = { _ in }
  ) throws -> Finding {
    let ledger = load.ledger
    guard bytes.count == ledger.size else {
      let cut = LedgerCut(numbers: load.completed.map { _ in 0 }, words: load.completed.map { _ in 0 })
      return Finding(
        cut: cut, pageCount: ledger.pageCount, differing: Array(0..<ledger.pageCount), objections: ["it has another size"])
    }
    return try unsafe shadow.reach(LedgerMemory(bytes, ledger), begun: checkpoint.begunAfter) { cut in
      let finding = Finding(
        cut: cut, pageCount: ledger.pageCount, differing: unsafe shadow.differing(UnsafeRawBufferPointer(bytes)),
        objections: cut.objections(
          completed: checkpoint.completedBefore, begun: checkpoint.begunAfter, load.writers.map(\.notes)))
      unsafe try then { unsafe self.shadow.differing($0) }
      return finding
    }
  }

  func judge(fileOf checkpoint: Checkpoint) throws -> Finding {
    let view = try LedgerFileView(checkpoint.path)
    return try unsafe judge(view.bytes, checkpoint)
  }

  /// The pages on which transfers wrote between two cuts.
  func pagesWritten(from first: LedgerCut, to last: LedgerCut) -> DirtySet {
    let ledger = load.ledger
    var isWritten = [Bool](repeating: false, count: ledger.pageCount)
    for writer in 0..<ledger.writers where first.numbers[writer] + 1 < last.numbers[writer] {
      for number in first.numbers[writer] + 1..<last.numbers[writer] {
        let transfer = ledger.transfer(number, of: writer)
        isWritten[ledger.page(of: transfer.debit)] = true
        isWritten[ledger.page(of: transfer.credit)] = true
      }
    }
    return DirtySet(
      pageCount: ledger.pageCount, runs: isWritten.indices.filter { isWritten[$0] }.map { $0..<$0 + 1 })
  }

  /// The claim that the memory is what all transfers made of it.
  func claimAboutMemory(_ subject: String) throws -> Claim {
    shadow.advance(to: load.completed)
    let (torn, differing) = try load.withMemory { memory in
      (memory.tornAccounts(), try unsafe load.region.withUnsafeMutableBytes { unsafe shadow.differing(.init($0)) })
    }
    let total = load.completed.reduce(0, +)
    return Claim(
      contract: "W5", claim: "\(subject): no write was lost or torn", holds: torn == 0 && differing.isEmpty && total > 0,
      evidence:
        "\(total.grouped) transfers replayed, \(load.ledger.pageCount.grouped) pages compared with the memory: \(differing.count.grouped) differ"
        + (differing.first.map { " (the first: \($0))" } ?? "")
        + "; \(load.ledger.recordCount.grouped) checksums, \(torn.grouped) wrong")
  }
}
