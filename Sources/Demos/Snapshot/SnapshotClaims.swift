internal import Foundation
internal import PinKit
internal import Terminal

/// What the demo claims, each computed from what was found.
struct SnapshotClaims {
  let judge: SnapshotJudge
  let ledger: Ledger
  let files: LedgerFiles

  // MARK: PinKit

  func aboutPinKit(_ checkpoints: [Checkpoint], _ images: [SnapshotImage]) throws -> [Claim] {
    let full = try judge.judge(fileOf: checkpoints[0])
    var claims = [
      Claim(
        contract: "W6", claim: "PinKit: the full image is the table at one moment, byte for byte", holds: full.isExact,
        evidence: full.evidence)
    ]
    let space = try SnapshotSession.space()
    let region = try space.map(.anonymous(hugePages: .never), pages: ledger.pageCount)
    defer { try? space.close() }
    try region.restore(from: images)
    try unsafe region.withUnsafeMutableBytes { bytes in
      var attempts: [SnapshotRefusals.Attempt] = []
      var changed: [Int] = []
      let restored = try unsafe judge.judge(bytes, checkpoints[1]) { differing in
        let refusals = SnapshotRefusals(region: region, files: files, full: images[0], increment: images[1])
        attempts = try refusals.run()
        changed = unsafe differing(UnsafeRawBufferPointer(bytes))
      }
      claims.append(
        Claim(
          contract: "W6", claim: "PinKit: full image and increment, restored elsewhere, are the table at the next moment",
          holds: restored.isExact, evidence: restored.evidence))
      claims.append(moments([full, restored]))
      claims += increments(images, checkpoints, from: full.cut, to: restored.cut)
      claims += refused(attempts, changed: changed)
    }
    return claims
  }

  private func increments(
    _ images: [SnapshotImage], _ checkpoints: [Checkpoint], from first: LedgerCut, to last: LedgerCut
  ) -> [Claim] {
    let written = judge.pagesWritten(from: first, to: last)
    let stored = images[1].storedPages
    let missing = written.subtracting(stored).count
    let sizes = checkpoints.map { $0.fileSize >> 10 }
    return [
      Claim(
        contract: "W5", claim: "PinKit: the increment holds every page that was written in between",
        holds: missing == 0 && !written.isEmpty,
        evidence: "\(written.count.grouped) pages were written by the transfers in between, the increment holds "
          + "\(stored.count.grouped); \(missing.grouped) are missing"),
      Claim(
        contract: "W5", claim: "PinKit: the increment is smaller than the full image",
        holds: stored.count < images[0].storedPages.count && sizes[1] < sizes[0],
        evidence: "\(stored.count.grouped) of \(images[0].storedPages.count.grouped) pages; \(sizes[1].grouped) KiB on "
          + "disk beside \(sizes[0].grouped)"),
    ]
  }

  private func refused(_ attempts: [SnapshotRefusals.Attempt], changed: [Int]) -> [Claim] {
    attempts.map { attempt in
      Claim(
        contract: "W6", claim: "PinKit: \(attempt.subject), and nothing changes",
        holds: attempt.holds && changed.isEmpty,
        evidence: (attempt.error.map { "\($0)" } ?? "It was restored.").replacing(files.directory + "/", with: "")
          + (changed.isEmpty ? "" : " \(changed.count.grouped) pages changed."))
    }
  }

  private func moments(_ findings: [SnapshotJudge.Finding]) -> Claim {
    let objections = findings.flatMap(\.objections)
    return Claim(
      contract: "W6", claim: "PinKit: both moments lie within the calls that took the snapshots", holds: objections.isEmpty,
      evidence: objections.isEmpty
        ? "Each has every transfer that was complete before the call, none that was begun after it, and with each transfer all "
          + "that its writer had seen of the others."
        : objections.joined(separator: "; "))
  }

  // MARK: fork()

  /// That the judge finds nothing wrong with the kernel's own copies, either.
  func aboutFork(_ checkpoints: [Checkpoint]) throws -> [Claim] {
    let findings = try checkpoints.map { try judge.judge(fileOf: $0) }
    let differing = findings.reduce(0) { $0 + $1.differing.count }
    return [
      Claim(
        contract: "K1", claim: "fork(): judged alike, the kernel's copies are the table at one moment too",
        holds: findings.allSatisfy { $0.isExact && $0.isMoment },
        evidence: "\(findings.count) copies, \(differing.grouped) pages differ; "
          + (findings.flatMap(\.objections).first ?? "the last: \(findings[findings.count - 1].cut)"))
    ]
  }
}
