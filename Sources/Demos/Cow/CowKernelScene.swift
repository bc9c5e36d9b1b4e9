internal import CFloor
internal import Foundation
internal import Terminal

/// The same attack on the running kernel, with a real fork(2), vmsplice(2) and munmap(2).
struct CowKernelScene: DemoScene {
  let title = "the same attack on the running kernel"

  enum Memory: CaseIterable {
    case shared, anonymous, huge

    var code: CInt {
      switch self {
      case .shared: CInt(cfloor_leak_shared.rawValue)
      case .anonymous: CInt(cfloor_leak_private.rawValue)
      case .huge: CInt(cfloor_leak_huge.rawValue)
      }
    }

    var name: String {
      switch self {
      case .shared: "shared memory"
      case .anonymous: "private memory"
      case .huge: "private memory on a huge page"
      }
    }
  }

  /// What the child read: `result` is 1 for the secret, 0 for what was there before, or -errno.
  struct Outcome {
    var memory: Memory
    var result: CInt
    var seen: String
  }

  /// Tries the attack; replaced by tests.
  var attack: (Memory) -> Outcome = Self.attackKernel

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A real child splices its page into a pipe, which holds a reference to it, and unmaps it. The parent writes, and the child reads the "
        + "pipe. Shared memory is the control: there the child has to see what its parent wrote, or the attack proves nothing."
    )
    stage.show()
    let outcomes = Memory.allCases.map(attack)
    for outcome in outcomes { stage.show("  " + outcome.memory.name.padded(to: 32) + outcome.verdict) }
    stage.show()
    let found = Self.judge(outcomes)
    stage.show(found.claims, about: "the kernel")
    return found
  }

  /// What the kernel does is told, and is no claim of ours; that it was asked properly is one.
  static func judge(_ outcomes: [Outcome]) -> DemoFindings {
    var found = DemoFindings()
    for outcome in outcomes {
      let subject = "the kernel: \(outcome.memory.name)"
      if outcome.result < 0 {
        found.skipped.append(.init(subject: subject, reason: outcome.verdict))
      } else {
        found.measurements.append(
          .init(subject: subject, name: "secret read by the child", value: Double(outcome.result), unit: "of 1"))
      }
      if outcome.memory == .shared, outcome.result >= 0 {
        found.claims.append(
          Claim(
            contract: "W3", claim: "the kernel: a child that may see the secret does see it, so the attack works",
            holds: outcome.result == 1, evidence: "From \(outcome.memory.name) it read \(quoted(outcome.seen))."))
      }
    }
    return found
  }

  private static func attackKernel(_ memory: Memory) -> Outcome {
    var seen = [CChar](repeating: 0, count: 16)
    let result = unsafe seen.withUnsafeMutableBufferPointer { buffer in
      unsafe cfloor_leak(memory.code, buffer.baseAddress!, buffer.count)
    }
    return Outcome(
      memory: memory, result: result,
      seen: String(decoding: seen.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))
  }
}

extension CowKernelScene.Outcome {
  /// In a sentence.
  var verdict: String {
    switch (result, memory) {
    case (1, .shared): "the child reads \(quoted(seen)), as it should"
    case (1, _): "the child reads \(quoted(seen)): this kernel leaks"
    case (0, .shared): "the child reads \(quoted(seen)), though the memory is shared"
    case (0, _): "the child reads \(quoted(seen)): this kernel copies"
    default: unsafe "could not be tried here: \(String(cString: strerror(-result)))"
    }
  }
}
