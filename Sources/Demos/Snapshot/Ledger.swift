/// A table of accounts, and the transfers that its writers make: which transfer has which number is known without looking.
///
/// Every record says which transfer wrote it last, and carries a checksum. Each account belongs to one writer, and the accounts of
/// different writers share pages. One stretch of pages in four is in use, the others only lie there.
struct Ledger: Sendable {
  static let recordSize = MemoryLayout<LedgerRecord>.size
  /// In pages.
  private static let stretch = 64
  private static let stretches = 4

  let pageSize: Int
  let pageCount: Int
  let writers: Int

  /// - Parameter pages: Rounded down to whole stretches, one of each kind at least.
  init(pages: Int, pageSize: Int, writers: Int) {
    self.pageSize = pageSize
    self.writers = writers
    let whole = Self.stretch * Self.stretches
    pageCount = max(1, pages / whole) * whole
  }

  var recordsPerPage: Int { pageSize / Self.recordSize }
  var recordCount: Int { pageCount * recordsPerPage }
  var size: Int { pageCount * pageSize }
  /// How many pages are in use.
  var busyPageCount: Int { pageCount / Self.stretches }

  func page(of account: Int) -> Int { account / recordsPerPage }
  func writer(of account: Int) -> Int { account % recordsPerPage % writers }

  /// One transfer.
  struct Transfer: Hashable, Sendable {
    /// From 1, for each writer.
    var number: UInt64
    var debit: Int
    var credit: Int
    var amount: UInt64
  }

  /// The transfer of a writer with that number: always the same one.
  func transfer(_ number: UInt64, of writer: Int) -> Transfer {
    let dice = Self.scrambled(number &* 2 &+ UInt64(writer) << 56)
    let debit = account(dice, writer, offset: 0)
    var credit = account(Self.scrambled(dice), writer, offset: 0)
    if credit == debit { credit = account(dice, writer, offset: 1) }
    return Transfer(number: number, debit: debit, credit: credit, amount: dice >> 48)
  }

  private func account(_ dice: UInt64, _ writer: Int, offset: Int) -> Int {
    let busy = (Int(dice & 0xffff_ffff) + offset) % busyPageCount
    let page = busy / Self.stretch * Self.stretch * Self.stretches + busy % Self.stretch
    let slots = recordsPerPage / writers
    return page * recordsPerPage + Int(dice >> 32 & 0xffff) % slots * writers + writer
  }

  /// A bijection without a pattern (the finalizer of SplitMix64).
  @inline(__always) static func scrambled(_ number: UInt64) -> UInt64 {
    var mixed = number &+ 0x9e37_79b9_7f4a_7c15
    mixed = (mixed ^ mixed >> 30) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ mixed >> 27) &* 0x94d0_49bb_1331_11eb
    return mixed ^ mixed >> 31
  }
}

/// An account: 128 bytes.
struct LedgerRecord: BitwiseCopyable, Sendable {
  static let wordCount = 16
  private(set) var words: InlineArray<16, UInt64>

  static let balanceAt = 3
  private static let firstBalance: UInt64 = 1_000_000

  /// - Parameter number: Of the transfer that wrote it; 0: none did.
  init(account: Int, number: UInt64, counterpart: Int, balance: UInt64, amount: UInt64) {
    words = InlineArray(repeating: 0)
    words[0] = number
    words[1] = UInt64(account)
    words[2] = UInt64(counterpart)
    words[Self.balanceAt] = balance
    words[4] = amount
    for index in 5..<15 { words[index] = number &* 0x9e37_79b9_7f4a_7c15 ^ UInt64(account) << UInt64(index) }
    words[15] = checksum
  }

  /// As an account begins.
  init(account: Int) {
    self.init(account: account, number: 0, counterpart: account, balance: Self.firstBalance, amount: 0)
  }

  init(words: InlineArray<16, UInt64>) { self.words = words }

  var number: UInt64 { words[0] }
  var isWhole: Bool { words[15] == checksum }

  private var checksum: UInt64 {
    var sum: UInt64 = 0x2545_f491_4f6c_dd1d
    for index in 0..<15 { sum = (sum ^ words[index]) &* 0xff51_afd7_ed55_8ccd }
    return sum ^ sum >> 32
  }
}
