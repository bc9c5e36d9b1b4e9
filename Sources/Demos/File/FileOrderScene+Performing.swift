internal import Glibc
internal import PinKit
internal import Synchronization

extension FileOrderScene {
  static func perform(page: Int = 21, refused: Int = 40, pages: Int = 64) throws -> Outcome {
    let files = try LedgerFiles(name: "file")
    let file = try DemoFile(files.path("ordered"), FileContent.pages(1, pages))
    let store = WatchedStore(try FileStore(path: file.path))
    let space = try DemoSpace.make(expectsFailures: true)
    let region = try space.map(.file(store), pages: pages)
    let log = NotifyLog()
    var outcome = Outcome()
    let subscription = try region.subscribe(NotifyRecorder(subscriber, log))
    _ = try FileContent.rounds(of: region)
    // A store may look at a page; it must not touch it.
    let watcher = FileWatcher(region, page)
    store.set { hooks in
      hooks.answersAtOnce = false
      hooks.granting = { pages throws(PinError) in
        if pages.contains(refused) { throw PinError(.outOfSpace, operation: "make page \(refused) writable") }
        log.note(Self.store, .note, "may it be written?")
        watcher.noteAsked()
      }
      hooks.writing = { transfer throws(PinError) in
        log.note(Self.store, .note, "write")
        watcher.noteWriting()
        if let row = try? FileHeatMap.Row("while it is written", region) { watcher.rows.withLock { $0.append(row) } }
      }
      hooks.flushing = { () throws(PinError) in log.note(Self.store, .note, "make durable") }
    }
    log.note(program, .note, "writes")
    try FileContent.write(2, page, to: region)
    log.note(program, .note, "has written")
    // Whoever opened it unlocks it after the program has gone on.
    for _ in 0..<1000 where try region.frameState(page).isLocked { usleep(1000) }
    outcome.written = try look(region, page)
    outcome.row.append(try FileHeatMap.Row("after the write", region))
    log.note(program, .note, "flushes")
    try region.flush()
    log.note(program, .note, "has flushed")
    outcome.events = log.take()
    outcome.flushed = try look(region, page)
    outcome.fileRound = FileContent.round(try file.page(page), of: page)
    outcome.row += watcher.rows.withLock { $0 } + [try FileHeatMap.Row("after the flush", region)]
    (outcome.asked, outcome.writing) = watcher.looks.withLock { ($0.asked, $0.writing) }
    do { try FileContent.write(2, refused, to: region) } catch { outcome.refusal = error.code }
    outcome.refused = try look(region, refused)
    outcome.roundAfterRefusal = try FileContent.rounds(of: region)[refused]
    subscription.remove()
    store.set { $0 = WatchedStore.Hooks() }
    try space.close()
    return outcome
  }

  static func look(_ region: Region, _ page: Int) throws -> Look {
    var isWritable = false
    let addresses = AddressRange(start: region.addresses.start + UInt(page * 4096), count: 4096)
    let query = PageMap.Query(required: .written, anyOf: .present, returned: .written)
    try PageMap().scan(addresses, query) { _, _ in isWritable = true }
    let state = try region.filePageState(page)
    return Look(
      isLocked: try region.frameState(page).isLocked, isDirty: state.isDirty, isUnderWriteback: state.isUnderWriteback,
      isWritable: isWritable)
  }
}

/// Looks at a page from inside the store.
final class FileWatcher: Sendable {
  struct Looks: Sendable {
    var asked: [FileOrderScene.Look] = []
    var writing: [FileOrderScene.Look] = []
  }
  let looks = Mutex(Looks())
  let rows = Mutex<[FileHeatMap.Row]>([])
  private let region: Region
  private let page: Int

  init(_ region: Region, _ page: Int) {
    self.region = region
    self.page = page
  }

  /// One that cannot be taken is missing, which the claims see.
  func noteAsked() {
    guard let look = try? FileOrderScene.look(region, page) else { return }
    looks.withLock { $0.asked.append(look) }
  }

  func noteWriting() {
    guard let look = try? FileOrderScene.look(region, page) else { return }
    looks.withLock { $0.writing.append(look) }
  }
}

extension FileOrderScene.Look {
  var text: String {
    let words = [
      isLocked ? "locked" : "", isDirty ? "dirty" : isUnderWriteback ? "under writeback" : "clean",
      isWritable ? "writable" : "read-only",
    ]
    return words.filter { !$0.isEmpty }.joined(separator: " and ")
  }
}
