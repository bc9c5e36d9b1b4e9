internal import Foundation
internal import Glibc
internal import PinKit
internal import Terminal

/// Long-term pins: what the kernel refuses, and what PinKit refuses for a store of its own (P1).
struct GupVerdictScene: DemoScene {
  let title = "a pin that lasts"
  let needs: [DemoNeed] = [.stores, .fixedBuffers]

  /// A mapping, and what was said of it.
  struct Trial: Sendable {
    var memory: String
    /// 0, or a negated errno of io_uring_register_buffers(2).
    var kernel: CInt
    var verdict: PinVerdict
  }

  /// What came of asking PinKit for a long-term pin of a region over a store.
  struct Refusal: Sendable {
    var code: PinError.Code?
    var message = ""
    /// Whether the region is as before, and a pin for a short time goes.
    var pinsAfter = 0
    var takesShortPin = false
    var takesLongPinForReading = false
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "The kernel knows the accident and refuses to begin it: a file that must hear of writes gets no long-term pin for writing. PinKit "
        + "says of any mapping what the kernel would, and holds regions over its own stores to the same rule.")
    let files = try LedgerFiles(name: "gup")
    // Also the current directory, where /tmp is in memory.
    let trials = try Self.trials(in: [files.directory, FileManager.default.currentDirectoryPath])
    let refusal = try Self.refuse(files)
    stage.show()
    for trial in trials {
      stage.show(
        "  " + trial.memory.padded(to: 44) + "kernel: \(trial.answer)".padded(to: 24) + "PinKit: \(trial.verdict.word)")
    }
    stage.show()
    stage.say(refusal.message, indent: 2)
    stage.show()
    var found = DemoFindings(showing: Self.judge(trials) + Self.judge(refusal), on: stage)
    if !trials.contains(where: { !$0.verdict.isAllowed }) {
      found.skipped.append(
        .init(
          subject: "a mapping that the kernel refuses",
          reason: "no directory here is on a file system that tracks dirty pages"))
    }
    return found
  }

  static func judge(_ trials: [Trial]) -> [Claim] {
    let wrong = trials.filter { $0.verdict.isAllowed != ($0.kernel == 0) }
    return [
      Claim(
        contract: "P1", claim: "PinKit's verdict on a long-term pin is the kernel's",
        holds: !trials.isEmpty && wrong.isEmpty,
        evidence: "Of \(trials.count) mappings the kernel pinned \(trials.count { $0.kernel == 0 }); PinKit allows "
          + "\(trials.count { $0.verdict.isAllowed })." + (wrong.first.map { " They differ about: \($0.memory)." } ?? ""))
    ]
  }

  static func judge(_ refusal: Refusal) -> [Claim] {
    [
      Claim(
        contract: "P1",
        claim: "a long-term pin for writing of a region over a store is refused, with the reason and a way out",
        holds: refusal.code == .needsDirtyTracking && refusal.pinsAfter == 0
          && ["must hear of a page before it is written", "Pin it for one operation only"].allSatisfy(
            refusal.message.contains),
        evidence: "\(refusal.code.map { "\($0)" } ?? "It was given"); \(counted(refusal.pinsAfter, "pin")) left behind."),
      Claim(
        contract: "P1", claim: "a pin for one operation, and one for reading, are given",
        holds: refusal.takesShortPin && refusal.takesLongPinForReading,
        evidence: "Short, for writing: \(refusal.takesShortPin ? "given" : "refused"). Long, for reading: "
          + "\(refusal.takesLongPinForReading ? "given" : "refused")."),
    ]
  }

  static func trials(in directories: [String]) throws -> [Trial] {
    var trials: [Trial] = []
    for directory in directories {
      for isShared in [true, false] {
        if let trial = try trial(directory, isShared) { trials.append(trial) }
      }
    }
    let space = try DemoSpace.make()
    let pool = try space.map(.pool, pages: 1)
    _ = try pool.store(UInt8(1), toByteOffset: 0)
    trials.append(try Trial("frames of a pool (a memfd)", pool.addresses))
    try space.close()
    return trials
  }

  /// `nil` where no file can be made.
  private static func trial(_ directory: String, _ isShared: Bool) throws -> Trial? {
    let path = "\(directory)/pinctl-gup-\(UUID().uuidString)"
    let descriptor = unsafe open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    unsafe unlink(path)
    let bytes = [UInt8](repeating: 1, count: 4096)
    guard unsafe write(descriptor, bytes, 4096) == 4096 else { return nil }
    let flags = isShared ? MAP_SHARED : MAP_PRIVATE
    let base = unsafe mmap(nil, 4096, PROT_READ | PROT_WRITE, flags, descriptor, 0)
    guard let base = unsafe base, unsafe base != MAP_FAILED else { return nil }
    defer { unsafe munmap(base, 4096) }
    let range = AddressRange(start: UInt(bitPattern: base), count: 4096)
    return try Trial("\(isShared ? "shared" : "private") mapping of a file in \(directory.abbreviated)", range)
  }

  static func refuse(_ files: LedgerFiles) throws -> Refusal {
    let file = try DemoFile(files.path("refused"), GupBytes.pages(1, .old))
    let space = try DemoSpace.make()
    let region = try space.map(.file(try FileStore(path: file.path)), pages: 1)
    var refusal = Refusal()
    do { _ = try FixedBuffers(region, [0..<1]) } catch {
      refusal.code = error.code
      refusal.message = error.description
    }
    _ = try region.load(fromByteOffset: 0, as: UInt8.self)
    refusal.pinsAfter = try region.frameState(0).counts.pins
    refusal.takesShortPin = (try? region.pin(0..<1, .write).unpin()) != nil
    refusal.takesLongPinForReading = (try? region.pin(0..<1, .longTerm).unpin()) != nil
    try space.close()
    return refusal
  }
}

extension GupVerdictScene.Trial {
  /// Asks both about memory that is there.
  init(_ memory: String, _ range: AddressRange) throws {
    let kernel = GupDevice.registers(range)
    if kernel < 0, kernel != -EFAULT, kernel != -EOPNOTSUPP { throw GupDevice.refusal(kernel) }
    self.init(memory: memory, kernel: kernel, verdict: try PinVerdict(of: range, for: .writing, lasting: .long))
  }

  var answer: String { unsafe kernel == 0 ? "pinned" : String(cString: strerror(-kernel)) }
}

extension PinVerdict {
  fileprivate var word: String { isAllowed ? "allowed" : "refused" }
}

extension String {
  /// The end of a long path.
  fileprivate var abbreviated: String { count <= 14 ? self : "…" + suffix(13) }
}
