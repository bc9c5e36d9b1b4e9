/// When a write hits a page whose frame may be shared: may the frame be written in place, or must the writer get a copy?
///
/// The choice looks harmless and is not. Suppose a page is shared with a child, the child takes a long-lived *pin* on it (it can read
/// the frame through the pin, without a mapping), and then unmaps its page. Only the parent maps the frame now. If the parent may
/// reuse it because *mappings* == 1, whatever it writes next, a key for example, can be read through the pin. Counting *references*
/// instead (the pin holds one) makes the parent copy, which is safe; but references are also taken for a moment by whoever
/// looks a frame up without knowing whether it is still there, so a writer may copy where nobody shares anything. Such a copy is
/// worse than slow: when the owner of a page has pinned it itself, for a device say, the copy leaves the device with the old frame
/// and the owner with the new one, and they never see each other's writes again.
///
/// The way out is to know which frames are *exclusive*: set when a mapping gets a frame of its own, cleared when the frame is
/// shared, and never cleared for a pinned one, since sharing copies those at once. A frame that is exclusive is reused whatever its
/// counts say, and one that is not can be proven exclusive only by having no reference but this mapping's.
public struct ReusePolicy: Sendable, Hashable, CustomStringConvertible {
  enum Rule: UInt8, Sendable, CaseIterable {
    case exclusive, refcount, mapcount, bareMapcount
  }
  let rule: Rule

  /// Reuse the frame if it is marked exclusive to this mapping, or has no other reference now. The default: safe, and coherent with
  /// the owner's own pins (W4).
  public static let exclusive = ReusePolicy(rule: .exclusive)
  /// Reuse the frame if this mapping holds the only reference. Never leaks; a reference that somebody holds for a moment costs a copy, and
  /// the owner's own pin may be left with the old frame.
  public static let refcount = ReusePolicy(rule: .refcount)
  /// Reuse the frame if this is its only mapping; a pin for reading of a shared frame first gives the pinner a copy, so that no pin
  /// outlives its mapping on a frame that others share.
  public static let mapcount = ReusePolicy(rule: .mapcount)
  /// Reuse the frame if this is its only mapping, whoever has pinned it. **Leaks**: what is written later can be read through a pin that
  /// was taken while the frame was shared. For showing exactly that.
  public static let unsafeBareMapcount = ReusePolicy(rule: .bareMapcount)

  /// Whether a pin of a shared frame gives the pinner its own frame first.
  public var pinsBreakSharing: Bool { rule == .exclusive || rule == .mapcount }

  public var description: String {
    switch rule {
    case .exclusive: "exclusive"
    case .refcount: "refcount"
    case .mapcount: "mapcount"
    case .bareMapcount: "bare mapcount"
    }
  }
}

/// What a frame's metadata says at one moment.
public struct FrameCounts: Sendable, Hashable {
  /// All references: one for each mapping, one for each lookup, ``FrameCounts/pinBias`` for each pin.
  public var references: Int
  /// How many pages of regions map it.
  public var mappings: Int
  /// It belongs to one mapping alone.
  public var isExclusive: Bool
  /// Its references are frozen: somebody is taking it away, or changing what it is.
  public var isFrozen: Bool

  public init(references: Int, mappings: Int, isExclusive: Bool = false, isFrozen: Bool = false) {
    self.references = references
    self.mappings = mappings
    self.isExclusive = isExclusive
    self.isFrozen = isFrozen
  }

  /// What one pin adds to ``references``, as in the kernel (`GUP_PIN_COUNTING_BIAS`).
  public static let pinBias = 1024

  /// True whenever the frame is pinned, and also when a thousand lookups hold it (P4).
  public var mayBePinned: Bool {
    let (others, isBeyond) = references.subtractingReportingOverflow(mappings)
    return isBeyond ? references > mappings : others >= Self.pinBias
  }
}

/// What a write to a page does.
public enum ReuseDecision: Sendable, Hashable {
  /// The frame is written in place.
  case reuse
  /// The writer gets a frame of its own with the same bytes.
  case copy
  /// The frame is changing hands: decide again in a moment.
  case retry
}

extension ReusePolicy {
  /// The decision, of nothing but the policy and the counts (W2). `counts` include the mapping that asks.
  @inline(__always) public func decide(_ counts: FrameCounts) -> ReuseDecision {
    if counts.isFrozen { return .retry }
    switch rule {
    case .exclusive: return counts.isExclusive || counts.references == 1 ? .reuse : .copy
    case .refcount: return counts.references == 1 ? .reuse : .copy
    case .mapcount, .bareMapcount: return counts.mappings == 1 ? .reuse : .copy
    }
  }

  /// Whether a copy is made for references only that go away by themselves: nobody else maps the frame or has pinned it.
  @inline(__always) func isSpurious(_ counts: FrameCounts) -> Bool { counts.mappings == 1 && !counts.mayBePinned }
}
