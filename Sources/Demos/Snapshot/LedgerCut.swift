internal import Terminal

/// A moment of the ledger, as a copy of it shows it.
struct LedgerCut: Hashable, Sendable, CustomStringConvertible {
  /// For each writer, its last transfer in the copy.
  var numbers: [UInt64]
  /// How many words of that one.
  var words: [Int]

  /// Whether the copy has all of a writer's transfers up to that number.
  private func includes(_ number: UInt64, of writer: Int) -> Bool {
    numbers[writer] > number || (numbers[writer] == number && (number == 0 || isComplete(writer)))
  }

  private func isComplete(_ writer: Int) -> Bool { words[writer] == 2 * LedgerRecord.wordCount }

  /// `writer 0 after transfer 1,234, writer 1 within transfer 99 (13 of 32 words)`
  var description: String {
    numbers.indices.map { writer in
      let number = numbers[writer].grouped
      return isComplete(writer)
        ? "writer \(writer) after transfer \(number)"
        : "writer \(writer) within transfer \(number) (\(words[writer]) of \(2 * LedgerRecord.wordCount) words)"
    }.joined(separator: ", ")
  }

  /// What speaks against its having been the state at one moment of a call; empty if nothing does.
  ///
  /// - Parameters:
  ///   - completed: Of each writer, what was complete before the call.
  ///   - begun: What had been begun when it had returned.
  ///   - writers: With their notes on each other.
  func objections(completed: [UInt64], begun: [UInt64], _ writers: [[[UInt64]]]) -> [String] {
    var found: [String] = []
    for writer in numbers.indices {
      if !includes(completed[writer], of: writer) {
        found.append("transfer \(completed[writer]) of writer \(writer) was complete before the call, and is not in it")
      }
      if numbers[writer] > begun[writer] {
        found.append("transfer \(numbers[writer]) of writer \(writer) was begun after the call, and is in it")
      }
      let notes = Int(numbers[writer] / LedgerWriter.noteStride)
      for other in numbers.indices where other != writer && notes > 0 {
        let seen = writers[writer][other][notes - 1]
        if !includes(seen, of: other) {
          found.append("writer \(writer) had seen transfer \(seen) of writer \(other) complete, which is not in it")
        }
      }
    }
    return found
  }
}
