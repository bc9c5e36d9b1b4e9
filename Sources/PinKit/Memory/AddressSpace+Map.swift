internal import Logging
internal import Synchronization

extension AddressSpace {
  /// Maps `pages` new pages that read as zeros.
  ///
  /// - Parameters:
  ///   - backing: What they are made of. For ``Backing/hugetlb`` a page is a huge page.
  ///   - pages: How many, at least one.
  /// - Throws: ``PinError``: `.outOfMemory`, `.outOfSpace` (no huge pages reserved), `.invalidArgument`. Does not block.
  public func map(_ backing: Backing = .anonymous, pages: Int) throws(PinError) -> Region {
    LockOrder.mayBlock("map")
    try requireOpen("map")
    let pageSize: Int
    if case .hugetlb(let size) = backing.kind { pageSize = size } else { pageSize = Memory.pageSize }
    guard pages >= 1, pages <= (1 << 46) / pageSize else {
      throw PinError(
        .invalidArgument, operation: "map", advice: "A region has at least one page and at most 64 TiB.")
    }
    let bytes = pages * pageSize
    let mapping: Mapping
    switch backing.kind {
    case .anonymous(let hugePages):
      mapping = try Mapping(count: bytes, alignment: bytes >= 2 << 20 ? 2 << 20 : 4096)
      switch hugePages {
      case .prefer: try? Memory.advise(mapping.range, .hugePages)
      case .never: try? Memory.advise(mapping.range, .noHugePages)
      case .systemDefault: break
      }
    case .pool(let hugePages): return try mapPool(hugePages, backing, pages: pages)
    case .hugetlb:
      let file = try MemoryFile(name: "pinkit-hugetlb", size: bytes, options: .hugetlb)
      do throws(PinError) {
        mapping = try Mapping(
          count: bytes, source: .file(file.checked, offset: 0, shared: true), forHugetlb: true)
      } catch {
        throw PinError(
          error.code, operation: "map \(pages) huge pages", errno: error.errno,
          advice: "Reserve huge pages first: `sysctl -w vm.nr_hugepages=\(pages)` or more.")
      }
    case .file(let stored): return try mapFile(stored, backing, pages: pages)
    case .adopted:
      throw PinError(.invalidArgument, operation: "map", advice: "Adopted memory comes from adopt(_:).")
    }
    if !configuration.inheritsAcrossFork { try Memory.advise(mapping.range, .dontFork) }
    return try Region(space: self, backing: backing, addresses: mapping.range, pageSize: pageSize, owned: mapping)
  }

  private func mapPool(_ hugePages: Backing.HugePages, _ backing: Backing, pages: Int) throws(PinError) -> Region {
    let pool = try framePool()
    let extent = unsafe try pool.makeExtent(pageCount: pages)
    do throws(PinError) {
      return unsafe try mapPool(
        backing, PoolExtent(pool: pool, extent: extent, isOwner: true, policy: .exclusive), pages: pages)
    } catch {
      pool.adopt([UInt(bitPattern: extent)])
      throw error
    }
  }

  private func mapFile(_ stored: StoredPages, _ backing: Backing, pages: Int) throws(PinError) -> Region {
    guard pages <= stored.store.geometry.pageCount else {
      throw PinError(
        .outOfBounds, operation: "map \(pages) pages of a store",
        advice: "The store has \(stored.store.geometry.byteCount) bytes, which are \(stored.store.geometry.pageCount) pages."
      )
    }
    guard !configuration.inheritsAcrossFork else {
      throw PinError(
        .unsupported, operation: "map a store",
        advice: "A child of fork() would write pages that nobody writes back: set inheritsAcrossFork to false.")
    }
    let region = try mapPool(.never, backing, pages: pages)
    do throws(PinError) { try stored.attach(to: region) } catch {
      try? region.unmap()
      throw error
    }
    return region
  }

  /// Maps a region of frames that there are already.
  func mapPool(_ backing: Backing, _ base: PoolExtent, pages: Int) throws(PinError) -> Region {
    let mapping = unsafe try base.pool.makeMapping(of: 0..<pages, in: base.extent.pointee)
    if case .pool(.prefer) = backing.kind { try? Memory.advise(mapping.range, .hugePages) }
    if !configuration.inheritsAcrossFork { try Memory.advise(mapping.range, .dontFork) }
    return try Region(
      space: self, backing: backing, addresses: mapping.range, pageSize: Memory.pageSize, owned: mapping, base: base)
  }

  /// Takes memory under management that the program has mapped already: a guest's RAM, an allocator's arena, a file.
  ///
  /// What it is comes from `/proc/self/maps`, not from the caller. It stays the program's: unmapping the region only ends the
  /// management. Its pages may be made guard pages, and its file may be truncated, at any time: calls that need such a page throw
  /// ``PinError/Code/inaccessible`` (K6). No page may hold the stack of a running thread or the process heap.
  ///
  /// - Parameter addresses: Page-aligned, wholly mapped, readable and writable, of one kind.
  /// - Throws: ``PinError`` `.invalidArgument`, `.inUse` if a region manages a part of it already. Does not block.
  public func adopt(_ addresses: AddressRange) throws(PinError) -> Region {
    LockOrder.mayBlock("adopt")
    try requireOpen("adopt")
    let (kind, pageSize, hugetlb) = try Adoption.examine(addresses)
    if !Memory.prepareCheckedCopies() {
      configuration.logger.warning(
        "process_vm_readv and process_vm_writev are forbidden and /proc/self/mem cannot be opened: a guard page, or a truncated file, under adopted memory ends the process if it is read"
      )
    }
    return try Region(
      space: self, backing: Backing(kind: .adopted(kind), hugetlb: hugetlb), addresses: addresses, pageSize: pageSize,
      owned: nil)
  }

  /// Takes memory under management that the program has mapped already; see ``adopt(_:)-(AddressRange)``.
  public func adopt(_ bytes: UnsafeMutableRawBufferPointer) throws(PinError) -> Region {
    guard let start = bytes.baseAddress else {
      throw PinError(.invalidArgument, operation: "adopt", advice: "The buffer is empty.")
    }
    return try adopt(AddressRange(start: UInt(bitPattern: start), count: bytes.count))
  }
}

/// What `/proc/self` says of memory that somebody wants managed.
enum Adoption {
  static func examine(
    _ addresses: AddressRange
  ) throws(PinError) -> (Backing.Adopted, pageSize: Int, hugetlb: Backing.HugetlbMapping) {
    func refuse(_ advice: String) -> PinError {
      PinError(.invalidArgument, operation: "adopt", range: addresses, advice: advice)
    }
    guard !addresses.isEmpty else { throw refuse("The range is empty.") }
    let mappings = try ProcessMaps.mappings(in: addresses)
    var at = addresses.start
    for mapping in mappings where mapping.range.end > at {
      guard mapping.range.start <= at else { break }
      at = mapping.range.end
    }
    guard let first = mappings.first, at >= addresses.end else {
      throw refuse("A part of it is not mapped (next hole at 0x\(String(at, radix: 16))).")
    }
    for mapping in mappings {
      if mapping.path == "[heap]" || mapping.path.hasPrefix("[stack") || mapping.path.hasPrefix("[v") {
        throw refuse("\(mapping.path) belongs to the process itself; a fault there could not be served.")
      }
      guard mapping.isReadable, mapping.isWritable else {
        throw refuse("\(mapping.range) is not readable and writable.")
      }
      guard !mapping.isExecutable else {
        throw refuse("\(mapping.range) is executable, a right that protecting and unprotecting it would take away.")
      }
      guard mapping.isShared == first.isShared, (mapping.inode == 0) == (first.inode == 0), mapping.path == first.path
      else { throw refuse("It spans memory of different kinds: \(first.path) and \(mapping.path) at \(mapping.range).") }
    }
    if let stack = Kernel.stack, addresses.overlaps(stack) {
      throw refuse("It holds the stack of the calling thread.")
    }
    let details = try ProcessMaps.details(at: addresses.start)
    let pageSize = details.pageSize
    guard addresses.start % UInt(pageSize) == 0, addresses.count % pageSize == 0 else {
      throw refuse("Both ends must be multiples of the page size, \(pageSize) bytes.")
    }
    if pageSize > Memory.pageSize {
      // MAP_HUGETLB without a descriptor has a file of its own, in which nothing ever is.
      let own: Backing.HugetlbMapping = first.path.hasPrefix("/anon_hugepage") ? .private : .privateOfFile
      return (.hugetlb(pageSize: pageSize), pageSize, first.isShared ? .shared : own)
    }
    if first.isAnonymous {
      let hugePages: Backing.HugePages =
        details.flags.contains("nh") ? .never : details.flags.contains("hg") ? .prefer : .systemDefault
      return (.anonymous(hugePages), pageSize, .shared)
    }
    if first.isShared, isMemory(first) { return (.sharedMemory, pageSize, .shared) }
    return (.file(path: first.path, isShared: first.isShared), pageSize, .shared)
  }

  /// Whether a shared mapping is of tmpfs, a memfd or the like, by the number of its device: the name of a file may be gone. A System V
  /// segment is not among them: the kernel registers it for tracking only, as it does files.
  private static func isMemory(_ mapping: ProcessMapping) -> Bool {
    if let type = (try? MountTable())?.type(of: mapping.device) {
      return (type == "tmpfs" || type == "devtmpfs") && mapping.isSpecialFile != true
    }
    // Of a file system that this process cannot see, or one that the kernel has mounted for itself.
    let names = ["/memfd:", "/dev/zero", "[anon_shmem:"]
    return mapping.path.isEmpty || names.contains(where: mapping.path.hasPrefix) || ProcessMaps.isTmpfs(mapping.path)
  }
}
