internal import Foundation
internal import Glibc
internal import PinKit
internal import Terminal

/// The bug of Heartbleed: the answer to a request is as long as the request says.
struct SealOverreadScene: DemoScene {
  let title = "an answer that is longer than its buffer"
  let needs: [DemoNeed] = [.seals]
  var keys = 24

  struct Outcome {
    var keys = 0
    /// Keys in the answer, and its length in bytes.
    var plainFound = 0
    var plainBytes = 0
    var sealedFound = 0
    var sealedBytes = 0
    /// Pages that the answer opened.
    var opened = 0
    var asked = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    let store = try SealKeyStore(SealNeedles(count: keys), SealingOptions(onAccess: .fail))
    defer { try? store.space.close() }
    stage.say(
      "A request of 16 bytes says that it has \((store.byteCount).grouped). The server sends as many back, from its buffer on: write(2), "
        + "and what lies behind the buffer are keys.")
    var outcome = Outcome(keys: keys, asked: store.byteCount)
    (outcome.plainFound, outcome.plainBytes) = try Self.answer(store)
    try store.region.seal(store.pages)
    (outcome.sealedFound, outcome.sealedBytes) = try Self.answer(store)
    outcome.opened = try store.sealed.count { !$0 }
    stage.show()
    stage.show("  plain   \(counted(outcome.plainBytes, "byte").aligned(to: 16))  \(counted(outcome.plainFound, "key"))")
    stage.show("  sealed  \(counted(outcome.sealedBytes, "byte").aligned(to: 16))  \(counted(outcome.sealedFound, "key"))")
    stage.show()
    return DemoFindings(showing: Self.judge(outcome), on: stage)
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "S5", claim: "an over-read has every key before they are sealed, and none after",
        holds: outcome.keys > 0 && outcome.plainFound == outcome.keys && outcome.plainBytes == outcome.asked
          && outcome.sealedFound == 0 && outcome.sealedBytes < outcome.asked,
        evidence:
          "\(outcome.plainFound) of \(outcome.keys) keys in \(outcome.plainBytes.grouped) bytes before, \(outcome.sealedFound) in "
          + "\(outcome.sealedBytes.grouped) after."),
      Claim(
        contract: "S1", claim: "the over-read opened no page", holds: outcome.keys > 0 && outcome.opened == 0,
        evidence: "\(outcome.opened) of \(outcome.keys) pages are open after it."),
    ]
  }

  /// What a client gets: how many keys, in how many bytes.
  private static func answer(_ store: SealKeyStore) throws -> (found: Int, bytes: Int) {
    let name = NSTemporaryDirectory() + "pinctl-seal-\(UUID().uuidString)"
    let descriptor = unsafe open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw POSIXError(.EIO) }
    _ = unsafe unlink(name)
    defer { close(descriptor) }
    let start = unsafe UnsafeRawPointer(bitPattern: store.region.addresses.start)!
    let sent = unsafe write(descriptor, start, store.byteCount)
    var bytes = [UInt8](repeating: 0, count: store.byteCount)
    let got = unsafe pread(descriptor, &bytes, bytes.count, 0)
    guard got == max(0, sent) else { throw POSIXError(.EIO) }
    let found = unsafe bytes.withUnsafeBytes { unsafe store.needles.found(in: $0) }
    return (Set(found).count, got)
  }
}
