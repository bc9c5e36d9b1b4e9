extension FileStore {
  /// How a file is opened and used.
  public struct Options: Sendable, Hashable {
    /// Whether pages go around the page cache.
    public enum Direct: Sendable, Hashable {
      /// Through the page cache: what is read again is there already, and writes return before the device has them.
      case never
      /// `O_DIRECT` where the file and its file system can, as for a region that is the cache itself; otherwise through the page cache.
      case preferred
      /// The same, or `.unsupported`.
      case required
    }

    /// Nothing is written, no lock is taken, and regions of it are read-only.
    public var isReadOnly = false
    public var direct = Direct.never
    /// Takes space for holes before pages become writable, so that it cannot run out when they are written back.
    ///
    /// In steps of 64 KiB, while there is room for them. Of no effect where the file has no holes when it is opened, or its file system
    /// cannot. A file system that writes to other blocks than those it overwrites (btrfs, and files of xfs that share blocks) may
    /// still run out.
    public var reservesSpace = true
    /// ``FileStore/flush()`` fails with `.fileChanged` when the path names another file than the one that is open, or none.
    public var checksName = true
    /// Writes each page in one step that the device does not tear even if the power fails (`RWF_ATOMIC`, Linux 6.11), at the price of one
    /// operation a page. Needs a device, or an xfs, that can, and a size in whole pages; goes around the page cache.
    public var writesWholePages = false

    public init() {}

    /// The same options, changed.
    public init(_ change: (inout Options) -> Void) { change(&self) }
  }
}
