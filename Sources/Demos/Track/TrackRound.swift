internal import Dispatch
internal import Foundation
internal import Glibc
internal import PinKit
internal import Synchronization

/// One round: several threads discard what the round before has left, and index the whole corpus in the region.
///
/// Each thread works in batches of a few words; between two batches the gate may hold it up.
final class TrackRound: Sendable {
  private static let batch = 64

  let region: Region
  let corpus: TrackCorpus
  let copies: Int
  let index: TrackIndex
  private let gate: TrackGate
  private let logs: [WriteLog]
  private let group = DispatchGroup()
  private let nextPiece = Atomic<Int>(0)
  private let stillDiscarding: Atomic<Int>
  private let discards = Atomic<Int>(0)
  /// In nanoseconds of uptime.
  private let ended = Atomic<UInt64>(0)
  private let error = Mutex<(any Error)?>(nil)

  init(region: Region, corpus: TrackCorpus, copies: Int, layout: TrackIndexLayout, gate: TrackGate, logs: [WriteLog]) {
    self.region = region
    self.corpus = corpus
    self.copies = copies
    self.gate = gate
    self.logs = logs
    index = TrackIndex(layout: layout)
    stillDiscarding = Atomic(logs.count)
  }

  /// Starts the threads.
  func start() {
    for writer in logs.indices {
      group.enter()
      let thread = Thread { [self] in
        run(writer)
        ended.max(DispatchTime.now().uptimeNanoseconds, ordering: .relaxed)
        group.leave()
      }
      thread.name = "indexer \(writer)"
      thread.start()
    }
  }

  /// Waits for at most so long; true if all threads have ended.
  func wait(milliseconds: Int) -> Bool { group.wait(timeout: .now() + .milliseconds(milliseconds)) == .success }

  /// When the last thread ended, in nanoseconds of uptime.
  var endTime: UInt64 { ended.load(ordering: .relaxed) }
  /// How many discards were begun.
  var discardCount: Int { discards.load(ordering: .acquiring) }
  var failure: (any Error)? { error.withLock { $0 } }

  private func run(_ writer: Int) {
    do {
      try discardShare(of: writer)
      try unsafe region.withUnsafeMutableBytes { bytes in
        let memory = unsafe LoggedMemory(bytes, pageSize: region.pageSize, log: logs[writer])
        var hand = TrackIndexWriter(index: index, memory: memory)
        while let (document, piece) = takePiece() { add(piece, document: document, logs[writer], &hand) }
      }
    } catch {
      self.error.withLock { $0 = $0 ?? error }
    }
  }

  /// Empties this writer's part of the region, and waits until the others have emptied theirs.
  private func discardShare(of writer: Int) throws {
    defer {
      stillDiscarding.subtract(1, ordering: .acquiringAndReleasing)
      while stillDiscarding.load(ordering: .acquiring) > 0 { usleep(50) }
    }
    let share = region.pageCount * writer / logs.count..<region.pageCount * (writer + 1) / logs.count
    logs[writer].begin(gate.enter())
    defer { gate.leave() }
    logs[writer].note(share)
    discards.add(1, ordering: .acquiringAndReleasing)
    try region.discard(share)
  }

  private func takePiece() -> (document: Int, TrackCorpus.Piece)? {
    guard failure == nil else { return nil }
    let next = nextPiece.add(1, ordering: .relaxed).oldValue
    let (copy, piece) = next.quotientAndRemainder(dividingBy: corpus.pieces.count)
    guard copy < copies else { return nil }
    return (copy * corpus.texts.count + corpus.pieces[piece].text, corpus.pieces[piece])
  }

  private func add(_ piece: TrackCorpus.Piece, document: Int, _ log: WriteLog, _ hand: inout TrackIndexWriter) {
    let text = corpus.texts[piece.text].bytes
    var at = piece.bytes.lowerBound
    var word: [UInt8] = []
    word.reserveCapacity(TrackCorpus.longestWord)
    while at < piece.bytes.upperBound {
      log.begin(gate.enter())
      var left = Self.batch
      while left > 0, at < piece.bytes.upperBound {
        while at < piece.bytes.upperBound, !TrackCorpus.isInWord(text[at]) { at += 1 }
        let start = at
        word.removeAll(keepingCapacity: true)
        while at < piece.bytes.upperBound, TrackCorpus.isInWord(text[at]) {
          if word.count < TrackCorpus.longestWord { word.append(TrackCorpus.lowercased(text[at])) }
          at += 1
        }
        if !word.isEmpty { hand.add(word, document: UInt32(document), offset: UInt32(start)) }
        left -= 1
      }
      gate.leave()
    }
  }
}
