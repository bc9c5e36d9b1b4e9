internal import SystemPackage

/// A file that was opened for a store, locked, and found fit.
struct OpenedStore: ~Copyable {
  fileprivate(set) var file: StoreFile
  let state: StoreFile.State
  /// Whether its name was made just now, and is not durable yet.
  let isNew: Bool
  var isDirect: Bool { file.direct >= 0 }
  /// In bytes: the least that the device writes in one step.
  var sector: Int { state.sector > 0 ? state.sector : 512 }

  consuming func giveFile() -> StoreFile { file }

  static func reopen(_ descriptor: CInt, _ options: FileStore.Options) throws(PinError) -> OpenedStore {
    var file = try StoreFile.reopen(descriptor, writes: !options.isReadOnly)
    if !options.isReadOnly { try file.lock() }
    return try finish(file, isNew: false, options)
  }

  static func open(
    _ path: String, creating byteCount: Int?, _ options: FileStore.Options
  ) throws(PinError) -> OpenedStore {
    if let byteCount, byteCount <= 0 {
      throw PinError(.invalidArgument, operation: "create \(path) of \(byteCount) bytes", advice: "Ask for 1 byte or more.")
    }
    // Whoever replaces the file between its opening and its lock wins once; nobody does it a hundred times by accident.
    for _ in 0..<100 {
      var isNew = false
      var file: StoreFile
      do throws(PinError) {
        file = try StoreFile.open(path, writes: !options.isReadOnly)
      } catch  where error.code == .notFound && byteCount != nil && !options.isReadOnly {
        guard let made = try StoreFile.create(path) else { continue }
        file = made
        isNew = true
      }
      if !options.isReadOnly { try file.lock() }
      guard try file.isNamed(by: path) else { continue }
      if let byteCount {
        do throws(PinError) { isNew = try fit(file, to: byteCount, path, options) || isNew } catch {
          if isNew { _ = try? NamedFile.remove(path) }
          throw error
        }
      }
      return try finish(file, isNew: isNew, options)
    }
    throw PinError(
      .fileChanged, operation: "open \(path)", advice: "Other programs keep replacing the file; let them finish.")
  }

  /// Gives an empty file its size, and refuses any other; returns whether it was empty, as one is that was made by a process which died then.
  private static func fit(
    _ file: borrowing StoreFile, to byteCount: Int, _ path: String, _ options: FileStore.Options
  ) throws(PinError) -> Bool {
    let state = try file.state()
    if state.kind == .other { throw notAFile(path) }
    if state.size == 0, state.kind == .regular, !options.isReadOnly {
      try file.setSize(byteCount)
      return true
    }
    guard state.size == byteCount else {
      throw PinError(
        .geometryMismatch, operation: "open \(path) with \(byteCount) bytes",
        advice: "It is there and has \(state.size) bytes: open it as it is, or choose another path.")
    }
    return false
  }

  private static func notAFile(_ name: String) -> PinError {
    PinError(
      .invalidArgument, operation: "open \(name)",
      advice: "It is neither a file nor a block device: name one, or another path for a new file.")
  }

  private static func finish(
    _ opened: consuming StoreFile, isNew: Bool, _ options: FileStore.Options
  ) throws(PinError) -> OpenedStore {
    var file = opened
    let state = try file.state(withAbilities: true)
    if !options.isReadOnly { file.openWriter() }
    let operation = "open \(file.name)"
    if state.kind == .other { throw notAFile(file.name) }
    guard state.size > 0 else {
      throw PinError(.invalidArgument, operation: operation, advice: "It is empty: say how large it shall be.")
    }
    guard !state.isReadOnly || options.isReadOnly else {
      throw PinError(.readOnly, operation: operation, advice: "The device refuses writes: ask for a read-only store.")
    }
    if options.writesWholePages {
      let isPossible = state.atomic.map { $0.contains(Memory.pageSize) } ?? false
      guard isPossible, state.size.isMultiple(of: Memory.pageSize) else {
        throw PinError(
          .unsupported, operation: "\(operation) for writes of whole pages",
          advice: "It needs Linux 6.11, a device that writes 4 KiB in one step or an xfs with reflinks, and whole pages.")
      }
    }
    if options.writesWholePages || options.direct != .never {
      let result = file.openDirect(writes: !options.isReadOnly)
      if result == -Errno.noSuchFileOrDirectory.rawValue, options.writesWholePages || options.direct == .required {
        throw .withoutProc("\(operation) for direct I/O")
      }
      if result < 0, options.writesWholePages || options.direct == .required {
        throw PinError(
          .unsupported, operation: "\(operation) for direct I/O", errno: Errno(rawValue: -result),
          advice: "Its file system has no O_DIRECT: use another, or let the store go through the page cache.")
      }
    }
    return OpenedStore(file: file, state: state, isNew: isNew)
  }
}
