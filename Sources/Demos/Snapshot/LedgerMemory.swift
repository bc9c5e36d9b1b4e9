internal import Synchronization

/// Memory with a ledger in it: a region, or the shadow of one.
///
/// Every store is an atomic one that releases, so that a transfer's words reach memory in their order: at any moment it shows some
/// first part of them.
@safe struct LedgerMemory: @unchecked Sendable {  // words are touched through atomics only
  private let words: UnsafeMutablePointer<Atomic<UInt64>>
  let ledger: Ledger

  /// `bytes` must hold the ledger and outlive the value.
  init(_ bytes: UnsafeMutableRawBufferPointer, _ ledger: Ledger) {
    precondition(bytes.count >= ledger.size)
    unsafe words = bytes.baseAddress!.bindMemory(to: Atomic<UInt64>.self, capacity: ledger.size / 8)
    self.ledger = ledger
  }

  @inline(__always) func load(_ account: Int) -> LedgerRecord {
    var found = InlineArray<16, UInt64>(repeating: 0)
    for index in 0..<LedgerRecord.wordCount { found[index] = word(account, index) }
    return LedgerRecord(words: found)
  }

  /// - Parameter count: How many words, from the first.
  @inline(__always) func store(_ record: LedgerRecord, at account: Int, count: Int = LedgerRecord.wordCount) {
    for index in 0..<count { unsafe place(account, index).pointee.store(record.words[index], ordering: .releasing) }
  }

  @inline(__always) func word(_ account: Int, _ index: Int) -> UInt64 {
    unsafe place(account, index).pointee.load(ordering: .relaxed)
  }

  @inline(__always) private func balance(_ account: Int) -> UInt64 { word(account, LedgerRecord.balanceAt) }

  @inline(__always) private func place(_ account: Int, _ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
    precondition(account >= 0 && account < ledger.recordCount)
    return unsafe words + account * LedgerRecord.wordCount + index
  }

  /// What the transfer makes of both accounts.
  @inline(__always) func outcome(_ transfer: Ledger.Transfer) -> (debit: LedgerRecord, credit: LedgerRecord) {
    let (from, to) = (balance(transfer.debit), balance(transfer.credit))
    return (
      LedgerRecord(
        account: transfer.debit, number: transfer.number, counterpart: transfer.credit, balance: from &- transfer.amount,
        amount: transfer.amount),
      LedgerRecord(
        account: transfer.credit, number: transfer.number, counterpart: transfer.debit, balance: to &+ transfer.amount,
        amount: transfer.amount)
    )
  }

  @inline(__always) func perform(_ transfer: Ledger.Transfer) {
    let (debit, credit) = outcome(transfer)
    store(debit, at: transfer.debit)
    store(credit, at: transfer.credit)
  }

  /// The table as it begins.
  func fill() { for account in 0..<ledger.recordCount { store(LedgerRecord(account: account), at: account) } }

  /// Writes to every page what it holds. Nobody else may write meanwhile.
  func touch() {
    for page in 0..<ledger.pageCount {
      let account = page * ledger.recordsPerPage
      store(load(account), at: account, count: 1)
    }
  }

  /// The accounts whose checksum is wrong.
  func tornAccounts() -> Int { (0..<ledger.recordCount).reduce(0) { $0 + (load($1).isWhole ? 0 : 1) } }
}
