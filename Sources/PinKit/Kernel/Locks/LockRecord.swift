internal import CUffd

/// A line of source in eight bytes: the address of a constant string, and the line's number in the low 16 bits.
@safe struct LockPlace: Sendable, Hashable, BitwiseCopyable {  // names a constant, which is there for ever
  let rawValue: UInt64

  init(rawValue: UInt64) { self.rawValue = rawValue }

  @inline(__always) init(file: StaticString = #fileID, line: UInt = #line) {
    let address = UInt(bitPattern: unsafe file.utf8Start)
    rawValue = UInt64(address) << 16 | UInt64(min(line, 0xffff))
  }

  var file: String {
    guard let start = unsafe UnsafePointer<UInt8>(bitPattern: UInt(rawValue >> 16)) else { return "" }
    return unsafe String(cString: start)
  }
  var line: Int { Int(rawValue & 0xffff) }
}

/// The door to what the C side records of each thread, without allocating or locking: callable in signal handlers.
enum LockRecord {
  /// A lock that the calling thread holds.
  @safe struct Held {  // the name is a constant
    fileprivate let raw: cuffd_held
    fileprivate init(_ raw: cuffd_held) { unsafe self.raw = raw }
    var rank: LockRank? { LockRank(rawValue: unsafe raw.rank) }
    var key: UInt { UInt(unsafe raw.key) }
    var highest: Int { Int(unsafe raw.highest) }
    private var flags: UInt8 { unsafe raw.flags }
    var isExclusive: Bool { flags & LockRecord.exclusive != 0 }
    var isCallback: Bool { flags & LockRecord.callback != 0 }
    var isFirstWrite: Bool { flags & LockRecord.firstWrite != 0 }
    fileprivate func site(of thread: UInt32) -> cuffd_site {
      unsafe cuffd_site(name: raw.name, place: raw.place, thread: thread, rank: raw.rank)
    }
  }

  static let exclusive: UInt8 = 1
  static let callback: UInt8 = 2
  static let firstWrite: UInt8 = 4

  typealias Violation = cuffd_violation

  @inline(__always) static var mode: Int32 { cuffd_order_mode_now() }
  static func setMode(_ mode: Int32) { cuffd_order_set_mode(mode) }

  static var count: Int { Int(cuffd_held_count()) }

  /// Calls `body` with what the thread holds, oldest first.
  @inline(__always) static func forEach(_ body: (Held) -> Void) {
    let locks = unsafe cuffd_held_locks()
    for index in 0..<count where unsafe locks[index].rank != 0 { body(unsafe Held(locks[index])) }
  }

  static func push(
    _ rank: LockRank, _ name: StaticString, key: UInt, index: Int = 0, place: LockPlace, flags: UInt8 = 0
  ) {
    var lock = unsafe cuffd_held(
      key: UInt64(key), name: name.cString, place: place.rawValue, highest: UInt64(index), count: 1, rank: rank.rawValue,
      flags: flags)
    unsafe cuffd_held_push(&lock)
  }

  static func pop(key: UInt) { cuffd_held_pop(UInt64(key)) }

  static func enterCallback(isAtomic: Bool) { cuffd_callback_enter(isAtomic ? 1 : 0) }
  static func leaveCallback() { cuffd_callback_leave() }
  @inline(__always) static var callbackDepth: Int { Int(cuffd_callback_depth()) }
  static var isInAtomicCallback: Bool { cuffd_callback_is_atomic() != 0 }

  /// The calling thread's, remembered: no system call but the first time.
  static var threadID: UInt32 { cuffd_thread_id() }

  // MARK: Violations

  /// Queues a violation of the calling thread, once for each pair of places.
  static func note(
    _ kind: Int32, _ held: Held, _ name: StaticString, _ place: LockPlace, rank: LockRank? = nil,
    owner: MutexOwner.State = .init()
  ) {
    var violation = unsafe cuffd_violation()
    unsafe violation.kind = kind
    unsafe violation.held = held.site(of: threadID)
    unsafe violation.wanted = cuffd_site(
      name: name.cString, place: place.rawValue, thread: threadID, rank: rank?.rawValue ?? 0)
    unsafe violation.owner = cuffd_site(
      name: name.cString, place: owner.place.rawValue, thread: owner.thread, rank: rank?.rawValue ?? 0)
    unsafe violation.waiting = cuffd_site(
      name: UnsafePointer(bitPattern: owner.waitName), place: owner.waitPlace.rawValue, thread: owner.thread, rank: 0)
    unsafe withUnsafeMutablePointer(to: &violation.thread_name) {
      unsafe cuffd_thread_name(threadID, UnsafeMutableRawPointer($0).assumingMemoryBound(to: CChar.self))
    }
    _ = unsafe cuffd_violation_note(&violation)
  }

  @inline(__always) static var hasViolations: Bool { cuffd_violation_pending() > 0 }
  static func take() -> cuffd_violation? {
    var violation = unsafe cuffd_violation()
    return unsafe cuffd_violation_take(&violation) != 0 ? violation : nil
  }
  static func forgetReported() { cuffd_violation_forget() }

  static func threadName(_ id: UInt32) -> String {
    var name: InlineArray<16, CChar> = .init(repeating: 0)
    return unsafe withUnsafeMutablePointer(to: &name) {
      let start = unsafe UnsafeMutableRawPointer($0).assumingMemoryBound(to: CChar.self)
      unsafe cuffd_thread_name(id, start)
      return unsafe String(cString: start)
    }
  }
}

extension StaticString {
  /// A literal ends with a zero.
  @inline(__always) fileprivate var cString: UnsafePointer<CChar> {
    unsafe UnsafeRawPointer(utf8Start).assumingMemoryBound(to: CChar.self)
  }
}
