internal import PinKit
internal import Terminal

/// A device writes while the page is on its way to the file (P3).
struct GupStableScene: DemoScene {
  let title = "a device writes while the page is being written back"
  let needs: [DemoNeed] = [.stores, .fixedBuffers]

  /// What the store was given, at the beginning and at the end of a write in which the device wrote; and what came of it.
  struct Outcome: Sendable {
    var given: [GupBytes] = []
    /// The same bytes after the device's write.
    var later: [GupBytes] = []
    /// The page itself then, through the pin.
    var pinned: [GupBytes] = []
    var isDirtyAfter = false
    var fileAfter = GupBytes.mixed
    var fileInTheEnd = GupBytes.mixed
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A page that can change at any moment cannot be written as it is: a checksum or a mirror would be of other bytes than those that "
        + "arrive. The store looks at what it was given, lets the device write, and looks again.")
    let outcome = try Self.perform()
    stage.show()
    for (name, list) in [("given", outcome.given), ("later", outcome.later), ("the page", outcome.pinned)] {
      stage.show("  " + name.padded(to: 12) + list.map { $0.rawValue.padded(to: 10) }.joined())
    }
    stage.show()
    return DemoFindings(showing: Self.judge(outcome), on: stage)
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "P3", claim: "what is written of a pinned page is a copy that does not change",
        holds: outcome.given == [.first] && outcome.later == [.first] && outcome.pinned == [.second]
          && outcome.fileAfter == .first,
        evidence:
          "The store was given \(names(outcome.given)); after the device's write, which put \(names(outcome.pinned)) into the page, "
          + "it had \(names(outcome.later)). The file got \(outcome.fileAfter.rawValue)."),
      Claim(
        contract: "P3", claim: "what the device wrote meanwhile is in the next writeback",
        holds: outcome.isDirtyAfter && outcome.fileInTheEnd == .second,
        evidence: "After the writeback the page was \(outcome.isDirtyAfter ? "dirty" : "clean"); the file ends with "
          + "\(outcome.fileInTheEnd.rawValue)."),
    ]
  }

  private static func names(_ list: [GupBytes]) -> String {
    list.isEmpty ? "nothing" : list.map(\.rawValue).joined(separator: ", ")
  }

  static func perform() throws -> Outcome {
    let files = try LedgerFiles(name: "gup")
    let file = try DemoFile(files.path("stable"), GupBytes.pages(4, .old))
    let space = try DemoSpace.make()
    let store = WatchedStore(try FileStore(path: file.path))
    let region = try space.map(.file(store), pages: 4)
    var pin: HeldPin? = HeldPin(try region.pin(0..<1, .write))
    let memory = unsafe pin!.pin.withUnsafeBytes {
      AddressRange(start: UInt(bitPattern: $0.baseAddress), count: $0.count)
    }
    var device: GupDevice? = try GupDevice(memory)
    try device?.write(.first)
    let watch = GupWatch(device, memory)
    store.set { hooks in hooks.writing = { transfer throws(PinError) in try watch.look(transfer) } }
    try region.flush()
    store.set { $0.writing = { _ throws(PinError) in } }
    var outcome = watch.outcome
    outcome.isDirtyAfter = try region.filePageState(0).isDirty
    outcome.fileAfter = GupBytes(try file.page(0), page: 0)
    watch.end()
    device = nil
    pin = nil
    try region.flush()
    outcome.fileInTheEnd = GupBytes(try file.page(0), page: 0)
    try space.close()
    return outcome
  }
}

/// In the store: on the thread that flushes.
private final class GupWatch: @unchecked Sendable {
  private var device: GupDevice?
  private let memory: AddressRange
  private(set) var outcome = GupStableScene.Outcome()

  init(_ device: GupDevice?, _ memory: AddressRange) {
    self.device = device
    self.memory = memory
  }

  func end() { device = nil }

  func look(_ transfer: PageTransfer) throws(PinError) {
    guard transfer.pages.contains(0) else { return }
    outcome.given.append(Self.content(transfer.memory))
    try device?.write(.second)
    outcome.later.append(Self.content(transfer.memory))
    outcome.pinned.append(Self.content(memory))
  }

  private static func content(_ memory: AddressRange) -> GupBytes {
    let bytes = unsafe [UInt8](UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: memory.start), count: 4096))
    return GupBytes(bytes, page: 0)
  }
}
