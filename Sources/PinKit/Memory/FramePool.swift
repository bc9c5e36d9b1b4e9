internal import Synchronization
internal import SystemPackage

/// The "physical memory" of an address space: the frames of a few memfds, with reference counts.
///
/// Each region of `.pool` memory has an extent of it, a sparse run of frames in which page *p*'s own frame is number *p*. Clones map the
/// extent of their original and get an extent for the pages that they write. A frame's metadata is eight bytes and a few bits,
/// none of which cost anything for memory that nobody has touched; its memory is given back when the last mapping and the last
/// reference are gone.
public final class FramePool: Sendable {
  private struct State: ~Copyable {
    var nextFrame = 0
    /// In each file, how many pages are given out.
    var pages: [Int]
    var extents: [UInt] = []
    /// Empty extents by size.
    var free: [Int: [UInt]] = [:]
    var directMaps: [AddressRange] = []
    /// Extents whose region is gone and of which others have frames.
    var orphans: [UInt] = []
  }
  private let state: Mutex<State>
  /// Extents by id, for the fault path.
  private let table: Mapping
  private static let capacity = 1 << 20
  /// Held while memory is given back and while extents change hands: one that somebody is still burying frames of must not go to a new
  /// region. Outside ``state``; never held in the fault path.
  private let burial = Mutex<Void>(())
  private let forkGeneration = Kernel.forkGeneration
  /// Frames died since memory was last given back.
  private let hasDead = Atomic<Bool>(false)
  let files: PoolFiles
  private let slices: RegionSlices
  /// How many files were lost when that was last said.
  private let knownLosses = Atomic<Int>(0)

  init(slices: RegionSlices = .automatic) throws(PinError) {
    self.slices = slices.settled
    table = try Mapping(count: Self.capacity * 8)
    files = try PoolFiles(self.slices.limit)
    state = Mutex(State(pages: [Int](repeating: 0, count: files.count)))
  }

  deinit {
    state.withLock { state in
      // A child of fork() has other memory there.
      if forkGeneration == Kernel.forkGeneration { for range in state.directMaps { Mapping.unmap(range) } }
      for raw in state.extents {
        let extent = unsafe Extent.Pointer(bitPattern: raw)!
        unsafe extent.deinitialize(count: 1)
        unsafe extent.deallocate()
      }
    }
  }

  /// Puts new spares in the place of numbers that were closed. `.lost` is said once.
  func repairDescriptor() -> MarkedDescriptor.Outcome {
    let (repaired, lost) = files.repair()
    if lost > knownLosses.exchange(lost, ordering: .relaxed) { return .lost }
    return repaired ? .repaired : .whole
  }

  // MARK: Extents

  @inline(__always) func extent(_ id: UInt32) -> Extent.Pointer {
    let slots = unsafe UnsafePointer<UInt>(bitPattern: table.range.start)!
    return unsafe Extent.Pointer(bitPattern: slots[Int(id)])!
  }

  /// An extent of so many frames that nobody has.
  func makeExtent(pageCount: Int) throws(PinError) -> Extent.Pointer {
    let made = try state.withLock { state throws(PinError) -> UInt in
      if let raw = state.free[pageCount]?.popLast() {
        unsafe Extent.Pointer(bitPattern: raw)!.pointee.isAdopted.store(false, ordering: .relaxed)
        unsafe Extent.Pointer(bitPattern: raw)!.pointee.isSwept.store(false, ordering: .relaxed)
        return raw
      }
      guard state.extents.count < Self.capacity - 1 else {
        throw PinError(
          .limitReached, operation: "make an extent", advice: "A pool has at most \(Self.capacity - 1) extents.")
      }
      let alignment = (2 << 20) / Memory.pageSize
      let length = (pageCount + alignment - 1) / alignment * alignment
      let id = UInt32(state.extents.count + 1)
      let shift = slices.shift(pageCount: pageCount)
      let places = try makeRoom(pageCount, sliceShift: shift, id: Int(id), &state)
      let extent = try Extent(
        id: id, firstFrame: state.nextFrame, pageCount: pageCount, sliceShift: shift, places: places)
      state.nextFrame += length
      let pointer = Extent.Pointer.allocate(capacity: 1)
      unsafe pointer.initialize(to: extent)
      let raw = UInt(bitPattern: pointer)
      state.extents.append(raw)
      let slots = unsafe UnsafeMutablePointer<UInt>(bitPattern: table.range.start)!
      unsafe slots[Int(id)] = raw
      return raw
    }
    return unsafe Extent.Pointer(bitPattern: made)!
  }

  /// Has the files grow for an extent, a slice in one file and the next in the next.
  private func makeRoom(
    _ pageCount: Int, sliceShift: Int, id: Int, _ state: inout State
  ) throws(PinError) -> InlineArray<16, FramePlace> {
    let alignment = (2 << 20) / Memory.pageSize
    var places = InlineArray<16, FramePlace>(repeating: FramePlace(file: 0, offset: 0))
    var pages = state.pages
    for slice in 0...(pageCount - 1) >> sliceShift {
      let count = min(pageCount - slice << sliceShift, 1 << sliceShift)
      let file = (id + slice) % files.count
      let end = pages[file] + (count + alignment - 1) / alignment * alignment
      try files.setSize(of: file, end * Memory.pageSize)
      places[slice] = FramePlace(file: file, offset: pages[file] * Memory.pageSize)
      pages[file] = end
    }
    state.pages = pages
    return places
  }

  /// Takes an extent back if nobody has a frame of it; false if somebody does.
  func recycle(_ extent: Extent.Pointer) -> Bool { burial.withLock { _ in unsafe recycleAlone(extent) } }

  private func recycleAlone(_ extent: Extent.Pointer) -> Bool {
    unsafe giveBackDead(in: extent)
    guard unsafe isEmpty(extent.pointee) else {
      unsafe sweep(extent)
      return false
    }
    unsafe punch(extent.pointee, 0..<extent.pointee.pageCount)
    unsafe extent.pointee.reset()
    state.withLock { unsafe $0.free[extent.pointee.pageCount, default: []].append(UInt(bitPattern: extent)) }
    return true
  }

  /// Takes extents back from a region that is gone: at once, or when the last frame of each is let go of.
  func adopt(_ extents: [UInt]) {
    guard isOfThisProcess else { return }
    state.withLock { state in
      for raw in extents where unsafe !Extent.Pointer(bitPattern: raw)!.pointee.isAdopted.exchange(true, ordering: .relaxed)
      {
        state.orphans.append(raw)
      }
    }
    burial.withLock { _ in recycleOrphans() }
  }

  private func recycleOrphans() {
    let orphans = state.withLock { state in
      defer { state.orphans = [] }
      return state.orphans
    }
    let kept = orphans.filter { raw in unsafe !recycleAlone(Extent.Pointer(bitPattern: raw)!) }
    state.withLock { $0.orphans += kept }
  }

  /// Gives back what nobody holds of a base that nobody maps any more: its frames were not counted one by one, so none was noted as dead.
  private func sweep(_ extent: Extent.Pointer) {
    guard unsafe extent.pointee.mappers.load(ordering: .sequentiallyConsistent) == 0,
      unsafe extent.pointee.isAdopted.load(ordering: .relaxed),
      unsafe !extent.pointee.isSwept.exchange(true, ordering: .relaxed)
    else { return }
    unsafe extent.pointee.dead.insert(0..<extent.pointee.pageCount)
    unsafe giveBackDead(in: extent)
  }

  private func isEmpty(_ extent: borrowing Extent) -> Bool {
    if extent.mappers.load(ordering: .sequentiallyConsistent) != 0 { return false }
    var isEmpty = true
    extent.tracked.forEachRun { run in
      for frame in run where isEmpty {
        let word = extent.word(frame)
        if word.mappings != 0 || word.extra != 0 || !word.flags.isDisjoint(with: [.frozen, .dying, .locked]) {
          isEmpty = false
        }
      }
    }
    return isEmpty
  }

  // MARK: Giving memory back

  /// After the frames were marked: whoever sees this sees them.
  func noteDead() { hasDead.store(true, ordering: .releasing) }

  /// Gives the memory of frames back that nobody has; cheap when there are none. Not for the fault path.
  func giveBackDead() {
    guard isOfThisProcess, hasDead.exchange(false, ordering: .acquiringAndReleasing) else { return }
    buryDead()
  }

  /// The same for who must know that it is done, whoever else is at it.
  func buryDead() {
    guard isOfThisProcess else { return }
    hasDead.store(false, ordering: .sequentiallyConsistent)
    burial.withLock { _ in
      for raw in state.withLock({ $0.extents }) { unsafe giveBackDead(in: Extent.Pointer(bitPattern: raw)!) }
      recycleOrphans()
    }
  }

  /// False in a child of fork(), which shares the file with its parent, and has none of the metadata.
  var isOfThisProcess: Bool { forkGeneration == Kernel.forkGeneration }

  private func giveBackDead(in extent: Extent.Pointer) {
    unsafe giveBackDead(extent.pointee)
  }

  private func giveBackDead(_ extent: borrowing Extent) {
    extent.dead.drain { run in
      var start = run.lowerBound
      for frame in run.lowerBound...run.upperBound {
        if frame < run.upperBound, markDying(extent, frame) { continue }
        if start < frame { bury(extent, start..<frame) }
        start = frame + 1
      }
    }
  }

  /// Whoever takes a reference first wins: the frame lives on.
  private func markDying(_ extent: borrowing Extent, _ frame: Int) -> Bool {
    let mappers = extent.mappers.load(ordering: .sequentiallyConsistent)
    let marked = extent.update(frame) { word in
      guard mappers + word.mappings == 0, word.extra == 0, word.flags.isDisjoint(with: [.frozen, .dying, .locked]) else {
        return nil
      }
      var word = word
      word.flags = .dying
      return word
    }
    guard marked != nil else { return false }
    // The extent may have been shared as a whole between the two looks, and a page of the newcomer have left.
    if extent.isNobodys(frame) { return true }
    extent.update(frame) { word in
      var word = word
      word.flags.remove(.dying)
      return word
    }
    return false
  }

  private func bury(_ extent: borrowing Extent, _ frames: Range<Int>) {
    punch(extent, frames)
    for frame in frames {
      extent.update(frame) { word in
        var word = word
        word.flags = []
        return word
      }
    }
  }

  /// Makes frames read as zeros and cost nothing. 0 or a negative errno, for want of memory or as a file was closed: then what lies in others has gone.
  @discardableResult func punch(_ extent: borrowing Extent, _ frames: Range<Int>) -> CInt {
    // A child of fork() shares the file with its parent.
    guard isOfThisProcess else { return -1 }
    var first: CInt = 0
    _ = forEachPart(of: frames, in: extent) { part, place in
      let result = Memory.punchHole(
        file: descriptor(of: place), place.offset..<place.offset + part.count * Memory.pageSize)
      if first == 0 { first = result }
      return 0
    }
    return first
  }

  // MARK: The direct map

  /// Where the pool itself maps the extent. A write there goes around every protection of a region.
  ///
  /// - Throws: ``PinError`` `.outOfMemory` at `vm.max_map_count`.
  func directMap(_ extent: Extent.Pointer) throws(PinError) -> UInt {
    let known = unsafe extent.pointee.directAddress.load(ordering: .acquiring)
    if known != 0 { return known }
    return try state.withLock { state throws(PinError) in
      let known = unsafe extent.pointee.directAddress.load(ordering: .acquiring)
      if known != 0 { return known }
      let mapping = unsafe try makeMapping(of: 0..<extent.pointee.pageCount, in: extent.pointee)
      let range = mapping.keep()
      for advice in [Memory.Advice.dontFork, .dontDump] { try? Memory.advise(range, advice) }
      state.directMaps.append(range)
      unsafe extent.pointee.directAddress.store(range.start, ordering: .releasing)
      return range.start
    }
  }

  // MARK: What there is

  /// What a pool holds; see ``FramePool/usage``.
  public struct Usage: Sendable, Hashable, Codable {
    /// Runs of frames that regions have, or had and others still hold frames of.
    public var extents: Int
    /// Frames that a mapping of a clone, a lookup or a pin refers to. A region that was never cloned does not count its own one by one.
    public var countedFrames: Int
    /// Regions that have an extent as their base.
    public var mappers: Int
    /// Memory that the frames take, in bytes, as the kernel says.
    public var residentBytes: Int
  }

  /// What the pool holds now, after memory that nobody has was given back. Looks at every counted frame: for tests, tools and metrics.
  /// In a child of `fork()` all of it is zero.
  public var usage: Usage {
    var usage = Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0)
    guard isOfThisProcess else { return usage }
    giveBackDead()
    let extents = state.withLock { state in
      usage.residentBytes = files.residentBytes
      let free = Set(state.free.values.joined())
      return state.extents.filter { !free.contains($0) }
    }
    usage.extents = extents.count
    for raw in extents {
      let extent = unsafe Extent.Pointer(bitPattern: raw)!
      unsafe count(extent.pointee, into: &usage)
    }
    return usage
  }

  /// Memory that the frames take, in bytes, as the kernel says: what ``usage`` has, without looking at frames.
  var residentBytes: Int { isOfThisProcess ? files.residentBytes : 0 }

  private func count(_ extent: borrowing Extent, into usage: inout Usage) {
    let mappers = extent.mappers.load(ordering: .acquiring)
    usage.mappers += mappers
    var counted = 0
    extent.tracked.forEachRun { run in
      for frame in run {
        let word = extent.word(frame)
        if mappers + word.mappings + word.extra > 0 { counted += 1 }
      }
    }
    usage.countedFrames += counted
  }
}

extension AddressSpace {
  /// The frames of the space's `.pool` regions. The pool is made when it is first asked for.
  ///
  /// - Throws: ``PinError`` `.outOfMemory`.
  public func framePool() throws(PinError) -> FramePool {
    try services.findOrMake(FramePool.self) { () throws(PinError) in try FramePool(slices: configuration.slices) }
  }
}
