internal import PinKit

/// The same steps, whoever manages the memory.
struct GupRun: Sendable {
  /// What is there after a step: of the first page; the file's bytes are the file's own.
  struct Row: Hashable, Sendable {
    var step: GupStep
    var state: GupState
    var memory: GupBytes
    var file: GupBytes
  }

  var name: String
  var rows: [Row] = []
  var pages: Int
  /// Of all pages, what the file holds in the end, and the memory before and after it was dropped.
  var file: [GupBytes] = []
  var memoryBefore: [GupBytes] = []
  var memoryAfter: [GupBytes] = []
  /// The first page of the file in the end.
  var fileBytes: [UInt8] = []

  func row(_ step: GupStep) -> Row? { rows.first { $0.step == step } }

  /// Lets a device write around the page table, as in the four steps, and looks at everything after each.
  static func perform(_ memory: some GupMemory, on file: DemoFile, pages: Int) throws -> GupRun {
    var run = GupRun(name: memory.name, pages: pages)
    func note(_ step: GupStep) throws {
      try memory.passed(step)
      run.rows.append(
        Row(
          step: step, state: try memory.state(of: 0), memory: GupBytes(try memory.bytes().prefix(4096), page: 0),
          file: GupBytes(try file.page(0), page: 0)))
    }
    func writeBack(_ begun: GupStep, _ done: GupStep) throws {
      let look = GupLook(memory, file)
      try memory.writeBack { look.look(begun) }
      if let row = look.row { run.rows.append(row) } else { try note(begun) }
      try note(done)
    }
    try memory.bringIn()
    try note(.begun)
    var device: GupDevice? = try GupDevice(try memory.pin())
    try device?.write(.first)
    try note(.firstWrite)
    try writeBack(.writing, .written)
    try device?.write(.second)
    try note(.secondWrite)
    device = nil
    try memory.unpin()
    try note(.unpinned)
    try writeBack(.laterWriting, .laterWritten)
    run.memoryBefore = try all(memory.bytes())
    run.file = try all(file.bytes(0..<pages * 4096))
    run.fileBytes = try file.page(0)
    try memory.dropAndBringIn()
    run.memoryAfter = try all(memory.bytes())
    try note(.dropped)
    try memory.close()
    return run
  }

  private static func all(_ bytes: [UInt8]) -> [GupBytes] {
    (0..<bytes.count / 4096).map { GupBytes(bytes[$0 * 4096..<($0 + 1) * 4096], page: $0) }
  }
}

/// Looks at a page from inside a writeback, once. The writeback runs on the thread that asked for it.
private final class GupLook: @unchecked Sendable {
  private let memory: any GupMemory
  private let file: DemoFile
  var row: GupRun.Row?

  init(_ memory: any GupMemory, _ file: DemoFile) {
    self.memory = memory
    self.file = file
  }

  func look(_ step: GupStep) {
    guard row == nil, let state = try? memory.state(of: 0), let bytes = try? memory.bytes(), let page = try? file.page(0)
    else { return }
    row = GupRun.Row(
      step: step, state: state, memory: GupBytes(bytes.prefix(4096), page: 0), file: GupBytes(page, page: 0))
  }
}
