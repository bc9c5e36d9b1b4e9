import Foundation
import Testing

@testable import Demos

@Suite("pinctl demo snapshot", .serialized) struct SnapshotDemoTests {
  private func run(_ arguments: [String], temporary: String? = nil) throws -> (code: Int32, output: Data) {
    let (process, output) = try startPinctl(["demo", "snapshot"] + arguments, temporary: temporary)
    let printed = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return (process.terminationStatus, printed)
  }

  @Test("W6/W5: every claim holds, and the JSON says so") func saves() throws {
    let files = try Scratch()
    let (code, output) = try run(["--json", "--size", "4", "--seconds", "0.05"], temporary: files.path)
    #expect(code == 0)
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "snapshot")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(Set(result.claims.map(\.contract)) == ["W5", "W6", "K1"])
    #expect(
      Set(result.measurements.map(\.subject))
        == ["undisturbed", "PinKit, full", "PinKit, increment", "fork(), first", "fork(), second"])
    for name in ["pause", "extra memory", "write, p50", "write, p99", "write, p99.9"] {
      #expect(result.measurements.filter { $0.name == name }.count >= 4, "\(name)")
    }
    #expect(result.skipped.isEmpty)
    #expect(try files.names().isEmpty)
  }

  @Test("Plain output has no escape codes, and a picture of both") func drawsPlainly() throws {
    let (code, output) = try run(["--size", "2", "--seconds", "0.05", "--writers", "3"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    #expect(shown.contains("\nwrites ") && shown.contains("✓ holds  W6"))
    let marks = shown.split(separator: "\n").first { $0.contains("▲") }
    // One that is complete in the column in which the next is taken gives way to that.
    #expect(marks?.filter { $0 == "▲" }.count == 4 && (1...4).contains(marks?.filter { $0 == "■" }.count ?? 0))
  }

  @Test("Where its files cannot be, it exits with 1; where the input makes no sense, with 64")
  func fails() throws {
    #expect(try run(["--size", "2"], temporary: "/nonexistent").code == 1)
    #expect(try run(["--size", "0"]).code == 64)
    #expect(try run(["--writers", "9"]).code == 64)
    #expect(try run(["--seconds", "0"]).code == 64)
  }

  @Test("A signal that ends it takes its files along") func cleansUp() throws {
    let files = try Scratch()
    let (process, output) = try startPinctl(
      ["demo", "snapshot", "--size", "4", "--seconds", "30"], temporary: files.path)
    // What it says of the table comes when it has its files.
    var shown = Data()
    while !String(decoding: shown, as: UTF8.self).contains("threads book transfers") {
      let more = output.fileHandleForReading.availableData
      try #require(!more.isEmpty, "it ended")
      shown += more
    }
    #expect(try files.names().count == 1)
    process.terminate()
    process.waitUntilExit()
    #expect(process.terminationReason == .uncaughtSignal && process.terminationStatus == SIGTERM)
    #expect(try files.names().isEmpty)
  }
}

/// A directory that goes with the test.
private struct Scratch: ~Copyable {
  let path = NSTemporaryDirectory() + "pinctl-\(UUID().uuidString)"

  init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
  deinit { try? FileManager.default.removeItem(atPath: path) }

  func names() throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: path) }
}

@Suite("Snapshot demo judge") struct LedgerTests {
  private let ledger = Ledger(pages: 256, pageSize: 4096, writers: 2)

  /// The table after so many transfers of each writer, and so many words of the next.
  private func table(_ numbers: [UInt64], words: [Int] = [0, 0]) -> [UInt64] {
    var bytes = [UInt64](repeating: 0, count: ledger.size / 8)
    unsafe bytes.withUnsafeMutableBytes { bytes in
      let memory = unsafe LedgerMemory(bytes, ledger)
      memory.fill()
      for writer in numbers.indices {
        if numbers[writer] > 0 {
          for number in 1...numbers[writer] { memory.perform(ledger.transfer(number, of: writer)) }
        }
        let next = ledger.transfer(numbers[writer] + 1, of: writer)
        let (debit, credit) = memory.outcome(next)
        memory.store(debit, at: next.debit, count: min(16, words[writer]))
        memory.store(credit, at: next.credit, count: max(0, words[writer] - 16))
      }
    }
    return bytes
  }

  /// What the shadow finds: the moment, and how many pages differ from it.
  private func judge(_ table: [UInt64], begun: [UInt64] = [99, 99]) throws -> (cut: LedgerCut, differing: Int) {
    var table = table
    let shadow = try #require(LedgerShadow(ledger))
    return unsafe table.withUnsafeMutableBytes { bytes in
      unsafe shadow.reach(LedgerMemory(bytes, ledger), begun: begun) { cut in
        (cut, unsafe shadow.differing(UnsafeRawBufferPointer(bytes)).count)
      }
    }
  }

  /// The second word of a record never changes, so whether it has been written cannot be told.
  @Test("The moment of a copy is found to the word", arguments: [0, 2, 15, 16, 18, 31])
  func findsMoment(words: Int) throws {
    let found = try judge(table([40, 7], words: [words, 0]))
    #expect(found.differing == 0)
    #expect(found.cut.numbers == (words == 0 ? [40, 7] : [41, 7]))
    #expect(found.cut.words == (words == 0 ? [32, 32] : [words, 32]))
  }

  @Test("A word that belongs to no moment, a write that is missing, and one from later are found")
  func findsDamage() throws {
    var changed = table([40, 7])
    changed[ledger.size / 8 - 3] ^= 1
    #expect(try judge(changed).differing == 1)
    var lost = table([40, 7])
    let account = ledger.transfer(12, of: 0).debit
    for word in 0..<16 { lost[account * 16 + word] = table([11, 7])[account * 16 + word] }
    #expect(try judge(lost).differing == 1)
    #expect(try judge(table([40, 7]), begun: [30, 99]).differing > 0)
  }

  @Test("The shadow goes on from where it was") func goesOn() throws {
    let shadow = try #require(LedgerShadow(ledger))
    for numbers: [UInt64] in [[3, 0], [3, 5], [90, 6]] {
      var copy = table(numbers, words: [20, 5])
      let differing = unsafe copy.withUnsafeMutableBytes { bytes in
        unsafe shadow.reach(LedgerMemory(bytes, ledger), begun: [99, 99]) { _ in
          unsafe shadow.differing(UnsafeRawBufferPointer(bytes)).count
        }
      }
      #expect(differing == 0)
    }
  }

  @Test("A moment outside the call, or before its own past, is found") func objects() {
    let cut = LedgerCut(numbers: [128, 70], words: [32, 9])
    // Before transfer 128, writer 0 had seen 69 of writer 1 complete; before 64, writer 1 had seen 100 of writer 0.
    let notes: [[[UInt64]]] = [[[], [10, 69]], [[100], []]]
    #expect(cut.objections(completed: [127, 69], begun: [129, 70], notes) == [])
    #expect(cut.objections(completed: [129, 60], begun: [129, 70], notes).count == 1)
    #expect(cut.objections(completed: [127, 70], begun: [129, 70], notes).count == 1)
    #expect(cut.objections(completed: [1, 1], begun: [127, 70], notes).count == 1)
    #expect(cut.objections(completed: [1, 1], begun: [128, 70], [[[], [10, 70]], [[129], []]]).count == 2)
  }

  @Test("Accounts belong to one writer, and transfers are never to oneself") func transfers() {
    for writer in 0..<2 {
      for number in 1...10_000 as ClosedRange<UInt64> {
        let transfer = ledger.transfer(number, of: writer)
        #expect(transfer.debit != transfer.credit)
        #expect(ledger.writer(of: transfer.debit) == writer && ledger.writer(of: transfer.credit) == writer)
      }
    }
  }
}
