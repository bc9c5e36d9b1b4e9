internal import Foundation
internal import PinKit
internal import Terminal

/// A process whose memory is read from outside, before its keys are sealed and after; then it dumps core.
struct SealReaderScene: DemoScene {
  let title = "somebody who can read all memory"
  let needs: [DemoNeed] = [.seals]
  var keys = 24

  struct Fault: Error, CustomStringConvertible { var description: String }

  /// One search.
  struct Look {
    var way: String
    var keys = 0
    /// Different keys that were found, before and after.
    var before: Int?
    var after = 0
    /// Whether what was never sealed was found as well, by the same search as `after`.
    var sawCanary = false
    var bytes = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A child has \(keys) keys, and one secret that it never seals, which shows that whoever finds nothing else did look. All its mappings are "
        + "read through and searched. Then it aborts, and the core file is searched.")
    stage.show()
    let needles = SealNeedles(count: keys + 1)
    let victim = try SealVictimProcess(needles)
    var looks: [Look] = []
    for way in SealMemorySearch.Way.allCases {
      let found = try SealMemorySearch.search(victim.pid, way, for: needles)
      looks.append(Look(way: way.rawValue, keys: keys, before: found.hits.keys.count { $0 < keys }))
    }
    guard victim.ask("seal") == "sealed \(keys)" else { throw Fault(description: "the child did not seal its keys") }
    for (index, way) in SealMemorySearch.Way.allCases.enumerated() {
      note(try SealMemorySearch.search(victim.pid, way, for: needles), in: &looks[index])
    }
    var findings = DemoFindings()
    switch try core(of: victim, needles) {
    case .success(let look): looks.append(look)
    case .failure(let fault): findings.skipped.append(.init(subject: "core dump", reason: fault.description))
    }
    for look in looks {
      let before = (look.before.map { "\($0) before" } ?? "").padded(to: 10)
      stage.show(
        "  \(look.way.padded(to: 17)) \(before) \(look.after) sealed, in \((Double(look.bytes) / 1_048_576).rounded(to: 1)) MiB"
      )
    }
    for skipped in findings.skipped { stage.say("\(skipped.subject): \(skipped.reason)", indent: 2) }
    stage.show()
    findings.claims = Self.judge(looks)
    stage.show(findings.claims)
    return findings
  }

  static func judge(_ looks: [Look]) -> [Claim] {
    looks.map { look in
      Claim(
        contract: "S5", claim: "\(look.way) finds no key while they are sealed",
        holds: look.keys > 0 && look.after == 0 && look.sawCanary && (look.before ?? look.keys) == look.keys,
        evidence: (look.before.map { "Before, \($0) of \(look.keys) keys were found. " } ?? "")
          + "Sealed, \(look.after), and \(look.sawCanary ? "the secret that is not sealed" : "not even the secret that is not sealed")"
          + ", in \(look.bytes.grouped) bytes.")
    }
  }

  private func note(_ found: SealMemorySearch.Found, in look: inout Look) {
    look.after = found.hits.keys.count { $0 < keys }
    look.sawCanary = found.hits[keys] != nil
    look.bytes = found.bytes
  }

  private func core(of victim: SealVictimProcess, _ needles: SealNeedles) throws -> Result<Look, Fault> {
    let pattern = try String(contentsOfFile: "/proc/sys/kernel/core_pattern", encoding: .utf8).filter { $0 != "\n" }
    if pattern.hasPrefix("|") || pattern.contains("/") || pattern.isEmpty {
      return .failure(Fault(description: "the kernel takes core dumps elsewhere (kernel.core_pattern is \"\(pattern)\")"))
    }
    guard let signal = victim.end(by: "core"), signal == 6 else {
      return .failure(Fault(description: "the child may not dump core here"))
    }
    guard let name = try FileManager.default.contentsOfDirectory(atPath: victim.directory.path).first else {
      return .failure(Fault(description: "the kernel wrote no core file"))
    }
    var look = Look(way: "a core dump", keys: keys)
    note(try SealMemorySearch.search(file: victim.directory.appendingPathComponent(name).path, for: needles), in: &look)
    return .success(look)
  }
}
