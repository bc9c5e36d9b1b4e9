internal import CUffd

/// Words that say whether a region of an id is gone while pages of it are pinned; one for each of 64 classes of ids. They are never freed.
enum OrphanMarks {
  static func raise(_ id: UInt64) { cuffd_orphan_raise(id) }
  static func lower(_ id: UInt64) { cuffd_orphan_lower(id) }
  /// In one order with every count of pins.
  @inline(__always) static func isRaised(_ id: UInt64) -> Bool { cuffd_orphan_is_raised(id) != 0 }
}
