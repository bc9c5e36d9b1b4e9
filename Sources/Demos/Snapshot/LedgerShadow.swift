internal import Dispatch
internal import Glibc

/// The ledger in ordinary memory, made from the transfers' numbers alone: what the table must have been at a moment.
@safe final class LedgerShadow {
  let ledger: Ledger
  private let bytes: UnsafeMutableRawBufferPointer
  private let memory: LedgerMemory
  /// For each writer, the number of the last transfer that it shows.
  private(set) var numbers: [UInt64]

  init?(_ ledger: Ledger) {
    self.ledger = ledger
    let start = unsafe mmap(nil, ledger.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let start = unsafe start, unsafe start != MAP_FAILED else { return nil }
    // A child of fork() that copies the region shall not pay for the shadow too.
    unsafe madvise(start, ledger.size, MADV_DONTFORK)
    unsafe bytes = UnsafeMutableRawBufferPointer(start: start, count: ledger.size)
    unsafe memory = LedgerMemory(bytes, ledger)
    numbers = Array(repeating: 0, count: ledger.writers)
    memory.fill()
  }

  deinit { unsafe munmap(bytes.baseAddress!, bytes.count) }

  /// Replays every writer's transfers up to its number; never goes back. The writers' accounts are their own, so each replays
  /// alone.
  func advance(to numbers: [UInt64]) {
    let (memory, ledger, from) = (memory, ledger, self.numbers)
    DispatchQueue.concurrentPerform(iterations: ledger.writers) { writer in
      var number = from[writer]
      while number < numbers[writer] {
        number += 1
        memory.perform(ledger.transfer(number, of: writer))
      }
    }
    for writer in numbers.indices { self.numbers[writer] = max(from[writer], numbers[writer]) }
  }

  /// The pages on which it differs from `other`.
  func differing(_ other: UnsafeRawBufferPointer) -> [Int] {
    guard unsafe other.count == bytes.count else { return Array(0..<ledger.pageCount) }
    return (0..<ledger.pageCount).filter { page in
      let offset = page * ledger.pageSize
      return unsafe memcmp(bytes.baseAddress! + offset, other.baseAddress! + offset, ledger.pageSize) != 0
    }
  }

  /// Finds the moment that a copy of the table shows, and goes to just there while `body` runs: to the last transfer of each writer
  /// that left a trace in it, and as many of that transfer's words as it has.
  ///
  /// - Parameters:
  ///   - copy: Of the whole table.
  ///   - begun: Of each writer, the last transfer that can be in it; it does not go further.
  func reach<Result>(_ copy: LedgerMemory, begun: [UInt64], _ body: (LedgerCut) throws -> Result) rethrows -> Result {
    var cut = LedgerCut(numbers: Self.lastNumbers(in: copy), words: [])
    let last = zip(cut.numbers, begun).map(min)
    advance(to: last.map { $0 == 0 ? 0 : $0 - 1 })
    var owed: [(account: Int, record: LedgerRecord)] = []
    for (writer, number) in last.enumerated() {
      // Where the copy lies in the shadow's past there is nothing to find.
      guard number > numbers[writer] else {
        cut.words.append(2 * LedgerRecord.wordCount)
        continue
      }
      let transfer = ledger.transfer(number, of: writer)
      let (debit, credit) = memory.outcome(transfer)
      let count = Self.common(debit, credit, transfer, copy)
      cut.words.append(count)
      for (account, record, begin) in [(transfer.debit, debit, 0), (transfer.credit, credit, LedgerRecord.wordCount)] {
        owed.append((account, memory.load(account)))
        memory.store(record, at: account, count: min(max(0, count - begin), LedgerRecord.wordCount))
      }
    }
    // The shadow goes on from before the transfers that were under way.
    defer { for (account, record) in owed { memory.store(record, at: account) } }
    return try body(cut)
  }

  /// How many words of the transfer the copy has, from its first store on.
  private static func common(
    _ debit: LedgerRecord, _ credit: LedgerRecord, _ transfer: Ledger.Transfer, _ copy: LedgerMemory
  ) -> Int {
    for (account, record, begin) in [(transfer.debit, debit, 0), (transfer.credit, credit, LedgerRecord.wordCount)] {
      for index in 0..<LedgerRecord.wordCount where copy.word(account, index) != record.words[index] {
        return begin + index
      }
    }
    return 2 * LedgerRecord.wordCount
  }

  private static func lastNumbers(in copy: LedgerMemory) -> [UInt64] {
    let ledger = copy.ledger
    var last = [UInt64](repeating: 0, count: ledger.writers)
    for account in 0..<ledger.recordCount {
      let writer = ledger.writer(of: account)
      last[writer] = max(last[writer], copy.word(account, 0))
    }
    return last
  }
}
