public import SystemPackage

/// Pages of a file or a block device: what a region of `Backing.file(_:)` is filled from and written back to.
///
/// ```swift
/// let store = try FileStore(path: "table.db", creating: 1 << 30)
/// ```
///
/// **What an interruption leaves.** After `kill -9`, or a crash of the program, each page of the file is as it was before a write or as it is
/// after it, whole, whether its write had returned or not. Everything written stays, also without ``flush()``. After a power
/// failure or a crash of the kernel, everything is there that was written before a ``flush()`` which returned; of pages written
/// since, each aligned piece of ``StoreGeometry/atomicUnit`` bytes is old or new. That is the sector of the device, unless
/// ``Options/writesWholePages`` makes it a page. A file system in memory (tmpfs) keeps nothing.
///
/// **One writer.** A store that may write locks the file with flock(2) for as long as it lives; another one gets `.inUse`. The lock is
/// advice: programs that do not ask for it can write, truncate or replace the file. Then reads of what is gone throw `.fileChanged`, and so
/// does the next ``flush()``; the size is never changed by this store.
///
/// All calls may be made from any thread, also at the same time. A child of `fork()` must not use the parent's.
public final class FileStore: PageStore {
  public let geometry: StoreGeometry
  /// The file's path, from the root on; `nil` if it was opened from a descriptor.
  public let path: String?
  public let options: Options
  /// Whether writes go around the page cache (`O_DIRECT`).
  public let isDirect: Bool
  /// Whether ``pageMakeWritable(_:)`` takes space: the file has holes, and its file system has not refused to fill them. One that cannot
  /// (ext2, NFS before 4.2) says so when it is first asked, which is for the first page that becomes writable; until then this is true.
  public var reservesSpace: Bool { reservations?.isPossible ?? false }

  let file: StoreFile
  /// In bytes; what direct I/O must be aligned to.
  let sector: Int
  let readingNow: StoreFile.ReadingNow
  let reservations: SpaceReservations?
  let account: WriteAccount
  let rings = RingPool()

  /// Opens a regular file or a block device.
  ///
  /// Blocks. Symbolic links are followed, and a new file is readable by its owner only.
  ///
  /// - Parameters:
  ///   - path: It names the file for as long as the store is used (``Options/checksName``). A relative one is taken from the directory that
  ///     the program has now; that it changes it later (chdir(2)) does not matter.
  ///   - byteCount: Makes the file, of so many bytes that are all a hole, if there is none or an empty one. A file of another size
  ///     is refused. `nil`: it must be there.
  ///   - options: How it is opened and used.
  /// - Throws: `.notFound`, `.permissionDenied`, `.readOnly`; `.inUse` if another store writes to it; `.geometryMismatch`;
  ///   `.unsupported` if an option cannot be had; `.invalidArgument` for what is no file, or is empty.
  public convenience init(path: String, creating byteCount: Int? = nil, options: Options = Options()) throws(PinError) {
    try NamedFile.check(path: path)
    let path = NamedFile.absolute(path)
    try self.init(try .open(path, creating: byteCount, options), path: path, options)
  }

  /// Opens the file that a descriptor stands for: a temporary file without a name, a memfd, or what another process sent.
  ///
  /// The descriptor stays the caller's and may be closed. There is no name to check. Needs `/proc`. Blocks.
  ///
  /// - Parameters:
  ///   - descriptor: Open for writing, unless the store is to be read-only.
  ///   - options: How it is opened and used.
  /// - Throws: As for a path.
  public convenience init(descriptor: FileDescriptor, options: Options = Options()) throws(PinError) {
    let opened = try OpenedStore.reopen(descriptor.rawValue, options)
    try self.init(opened, path: nil, options)
  }

  init(_ opened: consuming OpenedStore, path: String?, _ options: Options) throws(PinError) {
    let state = opened.state
    let pageCount = (state.size + Memory.pageSize - 1) / Memory.pageSize
    sector = opened.sector
    isDirect = opened.isDirect
    readingNow = isDirect ? .never : opened.file.readingNow(isTmpfs: state.isTmpfs)
    let hasHoles = state.kind == .regular && state.allocated < state.size
    reservations =
      !options.isReadOnly && options.reservesSpace && hasHoles ? try SpaceReservations(pageCount: pageCount) : nil
    account = try WriteAccount(pageCount: pageCount, mustSyncDirectory: opened.isNew)
    geometry = StoreGeometry(
      byteCount: state.size, atomicUnit: options.writesWholePages ? Memory.pageSize : opened.sector,
      isReadOnly: options.isReadOnly)
    self.path = path
    self.options = options
    file = opened.giveFile()
  }
}
