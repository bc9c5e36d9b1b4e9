internal import CUffd
internal import SystemPackage

/// A process whose memory is looked at from outside, through `/proc`. It may change, or end, at any moment.
///
/// Looking stops nobody and changes nothing. See proc_pid_smaps(5) and `Documentation/admin-guide/mm/pagemap.rst`.
public struct ObservedProcess: Sendable, Hashable {
  public let pid: Int32

  /// - Throws: ``PinError``: `.notFound` if there is no such process, `.invalidArgument` for numbers below 1.
  public init(_ pid: Int32) throws(PinError) {
    guard pid > 0 else {
      throw PinError(.invalidArgument, operation: "inspect process \(pid)", advice: "Process numbers begin at 1.")
    }
    self.pid = pid
    _ = try read("comm")
  }

  /// What the process calls itself, at most 15 bytes.
  public func name() throws(PinError) -> String { String(try read("comm").prefix { $0 != "\n" }) }

  /// All mappings, in order of address. Costs as much as a walk over the process's page tables: memory that was never touched costs
  /// nothing.
  ///
  /// - Throws: ``PinError``: `.permissionDenied`; `.notFound` if the process has ended; `.unsupported` if it has no memory of its own,
  ///   like a thread of the kernel.
  public func mappings() throws(PinError) -> [MappingDetails] {
    let found = ProcessMaps.parse(smaps: try read("smaps"))
    guard found.isEmpty else { return found }
    _ = try read("comm")
    throw PinError(
      .unsupported, operation: "inspect process \(pid)",
      advice: "It has no memory of its own: it belongs to the kernel, or is ending.")
  }

  /// A view of single pages.
  ///
  /// - Throws: As ``mappings()``.
  public func pages() throws(PinError) -> ObservedPages {
    do throws(PinError) { return try ObservedPages(pid) } catch { throw typed(error) }
  }

  /// Which processes map a part of the same file, for each mapping; empty for memory without a file.
  public struct Holders: Sendable, Hashable {
    /// Process numbers in ascending order, without the observed process.
    public var processes: [[Int32]]
    /// How many processes could not be looked at for want of the right.
    public var hidden: Int
  }

  /// Reads the `maps` of every process there is.
  public func holders(of mappings: [ProcessMapping]) throws(PinError) -> Holders {
    struct File: Hashable {
      let device: DeviceNumber
      let inode: UInt64
    }
    var wanted: [File: [Int]] = [:]
    for (index, mapping) in mappings.enumerated() where mapping.inode != 0 {
      wanted[File(device: mapping.device, inode: mapping.inode), default: []].append(index)
    }
    var holders = Holders(processes: Array(repeating: [], count: mappings.count), hidden: 0)
    guard !wanted.isEmpty else { return holders }
    for other in try Self.all() where other != pid {
      let text: String
      do throws(PinError) { text = try ProcessMaps.readFile("/proc/\(other)/maps") } catch {
        if error.code == .permissionDenied { holders.hidden += 1 }
        continue  // it has ended
      }
      var found: Set<Int> = []
      for line in text.split(separator: "\n") {
        guard let theirs = ProcessMapping(line: line), theirs.inode != 0,
          let indices = wanted[File(device: theirs.device, inode: theirs.inode)]
        else { continue }
        for index in indices where mappings[index].overlapsInFile(theirs) { found.insert(index) }
      }
      for index in found { holders.processes[index].append(other) }
    }
    return holders
  }

  /// Every process that /proc shows, in ascending order.
  static func all() throws(PinError) -> [Int32] {
    var numbers = [Int32](repeating: 0, count: 1 << 16)
    while true {
      let capacity = CInt(numbers.count)
      let count = Int(try PinError.check(unsafe cuffd_processes(&numbers, capacity), "list the processes of /proc"))
      if count < numbers.count { return numbers[..<count].sorted() }
      numbers = [Int32](repeating: 0, count: numbers.count * 2)
    }
  }

  private func read(_ file: String) throws(PinError) -> String {
    do throws(PinError) { return try ProcessMaps.readFile("/proc/\(pid)/\(file)") } catch { throw typed(error) }
  }

  private func typed(_ error: PinError) -> PinError {
    switch error.errno {
    case .noSuchFileOrDirectory?, .noSuchProcess?:
      PinError(
        .notFound, operation: "inspect process \(pid)", errno: error.errno,
        advice: "There is no such process, or it has just ended.")
    case .permissionDenied?, .notPermitted?:
      PinError(
        .permissionDenied, operation: "inspect process \(pid) (\(error.operation))", errno: error.errno,
        advice: "It belongs to somebody else: run this as its user, or as root (CAP_SYS_PTRACE).")
    default: error
    }
  }
}

extension ProcessMapping {
  fileprivate func overlapsInFile(_ other: ProcessMapping) -> Bool {
    let (own, theirs) = (UInt64(range.count), UInt64(other.range.count))
    return offset <= other.offset ? other.offset - offset < own : offset - other.offset < theirs
  }
}
