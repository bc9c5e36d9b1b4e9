/// The pages of another process, from `/proc/PID/pagemap`, `/proc/kpagecount` and `/proc/kpageflags`.
///
/// Not `Sendable`: it has buffers of its own, so one thread at a time.
public struct ObservedPages: ~Copyable {
  /// Of this machine, in bytes; a huge page counts as the small pages that it consists of.
  public static var pageSize: Int { Memory.pageSize }
  private let pid: Int32
  private let map: PageMap
  private let counts: FrameTable?
  private let flags: FrameTable?
  private let hasSwap: Bool
  private var entries = [UInt64](repeating: 0, count: 4096)

  /// What is known of a page.
  public struct State: OptionSet, Sendable, Hashable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let present = State(rawValue: 1 << 0)
    /// In a swap device, or on its way from one frame to another at this moment (K4). Who may not see which entry it has cannot tell it
    /// from a page that is absent and write-protected; where the machine has no swap, it is taken for such a one.
    public static let swapped = State(rawValue: 1 << 1)
    /// Of a file or of shared memory; others are anonymous.
    public static let file = State(rawValue: 1 << 2)
    /// Mapped more than once, by this process or by others.
    public static let shared = State(rawValue: 1 << 3)
    /// Write-protected by a userfaultfd; also of absent pages.
    public static let writeProtected = State(rawValue: 1 << 4)
    /// Part of a mapping of a huge page.
    public static let huge = State(rawValue: 1 << 5)
    /// Not written back since it was written. The kernel marks folios, not pages: of a large one all are dirty. Anonymous pages are not
    /// marked before they go to swap.
    public static let dirty = State(rawValue: 1 << 6)
    public static let writeback = State(rawValue: 1 << 7)
    /// Merged with others of the same content (KSM).
    public static let merged = State(rawValue: 1 << 8)
    /// The kernel's page of zeros: read and never written.
    public static let zero = State(rawValue: 1 << 9)

    public static let names: [(State, String)] = [
      (.present, "present"), (.swapped, "swapped"), (.file, "file"), (.shared, "shared"),
      (.writeProtected, "write-protected"), (.huge, "huge"), (.dirty, "dirty"), (.writeback, "writeback"),
      (.merged, "merged"), (.zero, "zero"),
    ]
  }

  /// Neighbouring pages of which the same is known.
  public struct Run: Sendable, Hashable {
    public var range: AddressRange
    public var state: State
    /// How many page-table entries map the frame; `nil` where this process may not know.
    public var mapCount: Int?
  }

  init(_ pid: Int32) throws(PinError) {
    self.pid = pid
    map = try PageMap(path: "/proc/\(pid)/pagemap")
    counts = try? FrameTable("/proc/kpagecount")
    flags = try? FrameTable("/proc/kpageflags")
    hasSwap = MemoryResidence.hasSwap
  }

  /// Whether ``Run/mapCount`` is known: `/proc/kpagecount` can be read (root).
  public var seesMapCounts: Bool { counts != nil }
  /// Whether `dirty`, `writeback` and `merged` are known: `/proc/kpageflags` can be read (root).
  public var seesFrameFlags: Bool { flags != nil }

  /// Calls `body` with every run of pages in `range` that has anything, in order of address. Untouched memory costs nothing where the
  /// kernel has `PAGEMAP_SCAN`.
  ///
  /// - Throws: ``PinError``: `.notFound` if the process ended meanwhile; what was handed to `body` before was true when it was read.
  public mutating func scan(_ range: AddressRange, _ body: (Run) -> Void) throws(PinError) {
    var last: Run?
    // In steps, so that what the kernel reports of a large process need not be kept all at once.
    let step: UInt = 8 << 30
    var at = range.start & ~(UInt(Memory.pageSize) - 1)
    // Behind the last mapping there are as many steps as a range has room for, and nothing to be found.
    let end = range.count > 1 << 40 ? min(range.end, try lastAddress()) : range.end
    while at < end {
      let part = AddressRange(start: at, end: min(end, at > .max - step ? .max : at + step))
      for (populated, categories) in populated(part) {
        try read(populated, categories) { run in
          if let joined = last, joined.range.end == run.range.start, joined.state == run.state,
            joined.mapCount == run.mapCount
          {
            last!.range.end = run.range.end
          } else {
            if let done = last { body(done) }
            last = run
          }
        }
      }
      at = part.end
    }
    if let last { body(last) }
  }

  /// The end of the process's last mapping, but for those of the kernel's half.
  private func lastAddress() throws(PinError) -> UInt {
    let lines = try ProcessMaps.readFile("/proc/\(pid)/maps").split(separator: "\n")
    return lines.compactMap { ProcessMapping(line: $0)?.range.end }.filter { $0 < 1 << 63 }.max() ?? 0
  }

  private func populated(_ range: AddressRange) -> [(AddressRange, PageMap.Categories)] {
    var found: [(AddressRange, PageMap.Categories)] = []
    let query = PageMap.Query(
      anyOf: [.present, .swapped], returned: [.huge, .zeroFrame, .swapped])
    do throws(PinError) {
      try map.scan(range, query) { found.append(($0, $1)) }
      return found
    } catch {
      return [(range, [])]  // before Linux 6.7: read every entry
    }
  }

  private mutating func read(_ range: AddressRange, _ known: PageMap.Categories, _ body: (Run) -> Void) throws(PinError) {
    let pageSize = UInt(Memory.pageSize)
    var at = range.start
    while at < range.end {
      let count = min(4096, Int((range.end - at + pageSize - 1) / pageSize))
      if entries.count != count { entries = [UInt64](repeating: 0, count: count) }
      let got = try map.read(at, into: &entries)
      guard got > 0 else {
        // Behind the last address of user space, or of a process that is no more.
        if try ObservedProcess(pid).isAlive { return }
        throw PinError(.notFound, operation: "inspect process \(pid)", advice: "It ended while it was looked at.")
      }
      for index in 0..<got {
        let entry = entries[index]
        let start = at + UInt(index) * pageSize
        if let run = run(AddressRange(start: start, count: Int(pageSize)), entry, known) { body(run) }
      }
      at += UInt(got) * pageSize
    }
  }

  /// Whether a page that is not present has bytes.
  private func isAway(_ entry: UInt64, _ known: PageMap.Categories) -> Bool {
    switch PagemapEntry.residence(entry) {
    case .away: true
    case .hidden: hasSwap || entry & PagemapEntry.writeProtected == 0
    // The entry of a hugetlb page under migration says nothing of it, the scan does.
    default: known.isSuperset(of: [.huge, .swapped]) && entry & PagemapEntry.writeProtected == 0
    }
  }

  private func run(_ page: AddressRange, _ entry: UInt64, _ known: PageMap.Categories) -> Run? {
    var run = Run(range: page, state: [], mapCount: nil)
    if entry & PagemapEntry.writeProtected != 0 { run.state.insert(.writeProtected) }
    if entry & PagemapEntry.present != 0 {
      run.state.insert(.present)
      if known.contains(.huge) { run.state.insert(.huge) }
      if entry & PagemapEntry.file != 0 { run.state.insert(.file) }
      if entry & PagemapEntry.exclusive == 0 { run.state.insert(.shared) }
      let frame = entry & PagemapEntry.frame
      if frame != 0 {
        run.mapCount = counts?.value(of: frame).map { Int($0) }
        run.state.formUnion(FrameFlags.state(flags?.value(of: frame) ?? 0))
      }
      if known.contains(.zeroFrame) { run.state.insert(.zero) }
    } else if isAway(entry, known) {
      run.state.insert(.swapped)
    }
    return run.state.isEmpty ? nil : run
  }
}

extension ObservedProcess {
  fileprivate var isAlive: Bool {
    do throws(PinError) { return try !ProcessMaps.readFile("/proc/\(pid)/maps").isEmpty } catch { return false }
  }
}
