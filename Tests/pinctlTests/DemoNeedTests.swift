import ArgumentParser
import CTestSupport
import CUffd
import Foundation
import Guest
import SystemPackage
import Terminal
import Testing

@testable import PinKit
@testable import Demos
@testable import pinctl

/// What demos make of a refusal: on a machine that lacks something a scene is skipped, on any other it has failed.
@Suite("Refusals in demos", .serialized) struct DemoNeedTests {
  private static let canTrack = Capabilities.probe().lack(of: [.mechanism(.handlerThread, .pool)]) == nil

  /// A demo of a stage that has seen what the machine can do, when PinKit is refused what it can.
  private static func refused(_ errno: CInt) throws -> DemoResult {
    let stage = DemoStage(colours: .none, width: 80)
    cuffd_inject(CInt(cuffd_call_open.rawValue), errno, 0, 1_000_000)
    return try NotifyDemo(breaks: 1).run(on: stage)
  }

  @Test(
    "K3: a refusal of what the machine can do is a claim that does not hold, and names the error",
    .enabled(if: canTrack, "needs userfaultfd"), arguments: [EPERM, ENOSYS, EMFILE])
  func wrongRefusal(_ errno: CInt) async {
    await #expect(processExitsWith: .success) { [errno = errno as CInt] in
      let result = try Self.refused(errno)
      #expect(cuffd_injected() > 0)
      #expect(!result.ok && result.skipped.isEmpty)
      let failing = result.claims.filter { !$0.holds }
      #expect(
        failing.map(\.claim) == [
          "handlerThread: runs to the end", "inPlace: runs to the end",
          "a window goes down for a collection: runs to the end",
        ])
      for claim in failing { #expect(claim.evidence.contains("errno \(errno)"), "\(claim.evidence)") }
      // What the refusal does not touch is shown.
      #expect(result.claims.contains { $0.holds && $0.claim.hasPrefix("mprotect: ") })
    }
  }

  @Test("K3: and the exit code of the command is 1", .enabled(if: canTrack, "needs userfaultfd"))
  func exitsWithFailure() async {
    await #expect(processExitsWith: .exitCode(1)) {
      struct Refused: Demo {
        let name = "refused"
        let summary = ""
        func run(on stage: DemoStage) throws -> DemoResult { try DemoNeedTests.refused(EPERM) }
      }
      do { try DemoCommand.perform(Refused(), on: DemoStage(colours: .none, width: 80), json: false) } catch {
        Pinctl.exit(withError: error)
      }
    }
  }

  @Test(
    "Where a filter forbids userfaultfd, its scenes are skipped with that reason, and the command succeeds",
    arguments: [("notify", 3, true), ("file", 6, false), ("seal", 5, false), ("gup", 3, false)])
  func lacking(_ name: String, skipped: Int, shows: Bool) async throws {
    let result = try await #require(
      processExitsWith: .exitCode(0), observing: [\.standardOutputContent, \.standardErrorContent]
    ) { [name = name as String] in
      try #require(ct_forbid_userfaultfd() == 0)
      Pinctl.main(["demo", name, "--json"])
    }
    let output = result.standardOutputContent
    let start = try #require(output.firstIndex(of: UInt8(ascii: "{")))
    let found = try JSONDecoder().decode(DemoResult.self, from: Data(output[start...]))
    #expect(found.ok && found.claims.isEmpty != shows && found.claims.allSatisfy(\.holds))
    #expect(found.skipped.count == skipped)
    for one in found.skipped { #expect(one.reason.contains("no userfaultfd"), "\(one)") }
  }

  @Test("Where a filter forbids io_uring, what needs it is skipped, and the rest is shown") func withoutRing() async throws {
    let result = try await #require(processExitsWith: .exitCode(0), observing: [\.standardOutputContent]) {
      try #require(ct_forbid_io_uring() == 0)
      Pinctl.main(["demo", "gup", "--json"])
    }
    let output = result.standardOutputContent
    let start = try #require(output.firstIndex(of: UInt8(ascii: "{")))
    let found = try JSONDecoder().decode(DemoResult.self, from: Data(output[start...]))
    #expect(found.ok && found.claims.isEmpty && found.skipped.count == 3)
    for one in found.skipped { #expect(one.reason.hasPrefix("io_uring: ") || one.reason.contains("userfaultfd"), "\(one)") }
  }

  /// A machine that has all that demos need.
  private var whole: Capabilities {
    var made = Capabilities()
    made.userfaultfd = .init(device: .worked, systemCall: .worked, userModeOnly: .worked)
    made.features = [
      .pagefaultFlagWP, .sigbus, .wpHugetlbfsShmem, .wpUnpopulated, .wpAsync, .missingShmem, .minorShmem,
    ]
    (made.anonymous, made.shmem) = (.init(all: .worked), .init(all: .worked))
    (made.pagemapScan, made.ioUring) = (.worked, .worked)
    made.lockedMemory = .init(soft: 8 << 20, hard: 8 << 20)
    return made
  }

  @Test("A need is lacking where the capability is that it rests on, and nowhere else") func needs() {
    let needs = [.memory, .stores, .seals, .fixedBuffers] + DemoNeed.all(.anonymous) + DemoNeed.all(.pool)
    func lacking(_ change: (inout Capabilities) -> Void) -> [DemoNeed] {
      var machine = whole
      change(&machine)
      return needs.filter { machine.lack(of: [$0]) != nil }
    }
    let trapping: [DemoNeed] = [.mechanism(.handlerThread, .anonymous), .mechanism(.inPlace, .anonymous)]
    let asynchronous: [DemoNeed] = [.mechanism(.asynchronous, .anonymous), .mechanism(.asynchronous, .pool)]
    #expect(lacking { _ in } == [])
    #expect(lacking { $0.ioUring = .refused(.notPermitted) } == [.fixedBuffers])
    #expect(lacking { $0.lockedMemory.soft = 4096 } == [.seals, .fixedBuffers])
    #expect(lacking { $0.lockedMemory.soft = nil } == [])
    #expect(lacking { $0.features.remove(.missingShmem) } == [.stores])
    #expect(lacking { $0.shmem.minor = .refused(.invalidArgument) } == [.stores, .seals])
    #expect(lacking { $0.pagemapScan = .refused(.noFunction) } == asynchronous)
    #expect(lacking { $0.features.remove(.wpAsync) } == asynchronous)
    #expect(Set(lacking { $0.anonymous.writeProtect = .refused(.notPermitted) }) == Set(trapping))
    let all = Set(needs)
    let resting: Set<DemoNeed> = [
      .memory, .fixedBuffers, .mechanism(.mprotect, .anonymous), .mechanism(.mprotect, .pool),
    ]
    for change in [
      { $0.userfaultfd = .init(device: .refused(.notPermitted), systemCall: .refused(.notPermitted)) },
      { $0.features.remove(.wpUnpopulated) },
    ] as [(inout Capabilities) -> Void] {
      #expect(Set(lacking(change)) == all.subtracting(resting))
    }
    #expect(whole.lack(of: needs) == nil)
  }

  @Test("What PinKit refuses is no reason why no guest can run") func guests() async {
    await #expect(processExitsWith: .success) {
      cuffd_inject(CInt(cuffd_call_mmap.rawValue), EPERM, 0, 1_000_000)
      #expect(GuestMachine.unavailable == nil)
      #expect(cuffd_injected() > 0)
    }
  }
}
