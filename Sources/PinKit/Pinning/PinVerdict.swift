/// Whether memory may be pinned, and if not, why and what to do instead (P1). The verdict is the running kernel's own.
public enum PinVerdict: Sendable, Hashable {
  case allowed
  case refused(Reason)

  /// What the pin is for.
  public enum Access: String, Sendable, Hashable, Codable, CaseIterable {
    case reading, writing
  }

  /// How long it lasts: `short` for one operation (direct I/O), `long` for as long as the holder likes (io_uring's fixed buffers, RDMA,
  /// VFIO). The kernel's `FOLL_PIN`, without and with `FOLL_LONGTERM`.
  public enum Duration: String, Sendable, Hashable, Codable, CaseIterable {
    case short, long
  }

  /// Why not.
  public enum Reason: Sendable, Hashable {
    /// The file must hear of writes, and those through a long-term pin go around it.
    case needsDirtyTracking(MemoryKind)
    /// The blocks of a DAX file must stay movable.
    case directAccess
    /// The mapping cannot be read, or not be written.
    case noAccess(Access)
    /// Device memory or secret memory.
    case noPages(MemoryKind)
  }

  public var isAllowed: Bool { self == .allowed }

  /// The verdict on one mapping. In the order of the kernel's `check_vma_flags` (`mm/gup.c`).
  public init(of mapping: DirtyTracking, for access: Access, lasting duration: Duration) {
    let may = access == .writing ? mapping.isWritable : mapping.isReadable
    switch mapping.memory {
    case .deviceMemory, .secret: self = .refused(.noPages(mapping.memory))
    case .directAccess where duration == .long: self = .refused(.directAccess)
    case let memory where access == .writing && duration == .long && mapping.needsDirtyTracking:
      self = .refused(.needsDirtyTracking(memory))
    default: self = may ? .allowed : .refused(.noAccess(access))
    }
  }

  /// A pin of memory in several mappings is refused if it is for one of them.
  public init(of mappings: [DirtyTracking], for access: Access, lasting duration: Duration) {
    let verdicts = mappings.map { PinVerdict(of: $0, for: access, lasting: duration) }
    self = verdicts.first { !$0.isAllowed } ?? .allowed
  }

  /// The verdict on memory of this process; see ``DirtyTracking/of(_:)`` for what it costs and throws.
  public init(of range: AddressRange, for access: Access, lasting duration: Duration) throws(PinError) {
    self.init(of: try DirtyTracking.of(range), for: access, lasting: duration)
  }

  /// Throws unless the pin is allowed.
  ///
  /// - Throws: ``PinError`` `.needsDirtyTracking`, `.accessDenied` or `.unsupported`, which says why and what to do instead.
  public func check(_ operation: @autoclosure () -> String, _ range: AddressRange? = nil) throws(PinError) {
    guard case .refused(let reason) = self else { return }
    throw PinError(reason.code, operation: operation(), range: range, advice: "\(reason)")
  }
}

extension PinVerdict.Reason: CustomStringConvertible {
  var code: PinError.Code {
    switch self {
    case .needsDirtyTracking: .needsDirtyTracking
    case .directAccess, .noPages: .unsupported
    case .noAccess: .accessDenied
    }
  }

  /// Why, and what to do instead.
  public var description: String {
    switch self {
    case .needsDirtyTracking(let memory):
      "\(Self.why(memory)). Pin it for one operation only, pin it for reading, map the file privately, or let the device write to "
        + "anonymous memory, a memfd or huge pages and copy."
    case .directAccess:
      "The file lies in persistent memory (DAX), whose blocks must stay movable, so it has no long-term pins. Pin it for one operation "
        + "only, or copy to anonymous memory, a memfd or huge pages."
    case .noAccess(let access):
      "The mapping cannot be \(access == .writing ? "written" : "read"). Map it with that right, or change it with mprotect(2)."
    case .noPages(.secret):
      "Secret memory has no pages that anybody else may reach. Copy what is not secret to other memory."
    case .noPages: "Memory of a device has no pages that could be pinned. Copy to anonymous memory, a memfd or huge pages."
    }
  }

  private static func why(_ memory: MemoryKind) -> String {
    switch memory {
    case .file(let name): "\(name) must hear of a page before it is written, and a long-term pin writes without a word"
    case .store: "The region's store must hear of a page before it is written, and a long-term pin writes without a word"
    case .unknown(let name):
      "Whether \(name) must hear of a page before it is written cannot be told, so it is taken to, and a long-term pin writes without "
        + "a word"
    default: "Somebody must hear of a page before it is written, and a long-term pin writes without a word"
    }
  }
}
