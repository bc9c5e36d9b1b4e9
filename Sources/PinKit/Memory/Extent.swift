internal import Synchronization

/// A run of frames of a pool: page *p* of the region that it was made for has frame *p* of the extent as its own.
///
/// Frames are counted from 0 within the extent. Most regions map an extent as a whole: that is one number, ``mappers``, and the words of
/// the frames hold differences from it only. Extents live as long as their pool, so that whoever looks up a frame without a lock always
/// finds metadata there; an empty one is used again.
@safe struct Extent: ~Copyable, @unchecked Sendable {  // words are touched through atomics only
  typealias Pointer = UnsafeMutablePointer<Extent>

  /// Counted from 1 in the pool; page tables say 0 for "the region's base".
  let id: UInt32
  /// In frames of the pool: by which they are named.
  let firstFrame: Int
  let pageCount: Int
  /// Its frames are in several files, as the pages of its region are in slices.
  private let sliceShift: Int
  private let places: InlineArray<16, FramePlace>
  private let words: UnsafeMutablePointer<Atomic<UInt64>>
  /// Frames whose word was ever other than zero.
  let tracked: PageBitmap
  /// Frames that somebody has let go of last, whose memory is to be given back.
  let dead: PageBitmap
  /// How many regions have it as their base: each maps every frame of it but those that its page table says otherwise of.
  let mappers = Atomic<Int>(0)
  /// How often ``mappers`` has changed.
  private let comings = Atomic<UInt64>(0)
  /// Whether a frame is exclusive only if its word says so. False while it is the base of one region that was never shared: then all are.
  let isShared = Atomic<Bool>(false)
  /// Whether its region is gone, and the pool waits for its last frame.
  let isAdopted = Atomic<Bool>(false)
  /// Whether what nobody held then was given back when the last region that had it as its base went.
  let isSwept = Atomic<Bool>(false)
  /// The direct map: where the pool itself maps the extent, or 0 until somebody needs it. Set once: who finds 0 has it mapped, or comes again.
  let directAddress = Atomic<UInt>(0)
  private let metadata: Mapping

  private static let headerSize = 64

  init(
    id: UInt32, firstFrame: Int, pageCount: Int, sliceShift: Int, places: InlineArray<16, FramePlace>
  ) throws(PinError) {
    self.id = id
    self.sliceShift = sliceShift
    self.places = places
    self.firstFrame = firstFrame
    self.pageCount = pageCount
    let bitmap = PageBitmap.size(pageCount: pageCount)
    let metadata = try Mapping.forNotes(count: Self.headerSize + pageCount * 8 + 2 * bitmap)
    let base = unsafe metadata.start
    let tops = unsafe base.bindMemory(to: Atomic<UInt64>.self, capacity: 8)
    unsafe words = (base + Self.headerSize).bindMemory(to: Atomic<UInt64>.self, capacity: pageCount)
    let bitmaps = unsafe base + Self.headerSize + pageCount * 8
    tracked = unsafe PageBitmap(memory: bitmaps, top: tops, pageCount: pageCount)
    dead = unsafe PageBitmap(memory: bitmaps + bitmap, top: tops + 1, pageCount: pageCount)
    self.metadata = metadata
  }

  /// Whether no frame of it was ever taken since it was empty.
  var isUntouched: Bool { tracked.isEmpty }

  /// Forgets everything; nobody has a frame of it.
  func reset() {
    isShared.store(false, ordering: .sequentiallyConsistent)
    try? Memory.advise(metadata.range, .dontNeed)
  }

  /// Where a frame is.
  @inline(__always) func place(of frame: Int) -> FramePlace {
    let slice = frame >> sliceShift
    return places[slice].advanced(by: (frame - slice << sliceShift) * Memory.pageSize)
  }

  /// The frames that lie side by side with `frame`, itself among them.
  @inline(__always) func part(of frame: Int) -> Range<Int> {
    let slice = frame >> sliceShift
    return slice << sliceShift..<min(pageCount, (slice + 1) << sliceShift)
  }

  @inline(__always) func word(_ frame: Int) -> FrameWord {
    FrameWord(rawValue: unsafe words[frame].load(ordering: .acquiring))
  }

  /// A frame's word and the mappers, between which no region has come or gone.
  ///
  /// A region that comes is counted first, and what it does not map is taken off the words after that; one that goes, the other way
  /// round. So each half by itself never makes the sum too small, but a word from before and a number from after would: a frame of two
  /// would look like a frame of one, and be written in place.
  @inline(__always) private func consistent(_ frame: Int) -> (word: FrameWord, mappers: Int) {
    while true {
      let before = comings.load(ordering: .sequentiallyConsistent)
      let mappers = mappers.load(ordering: .sequentiallyConsistent)
      let word = FrameWord(rawValue: unsafe words[frame].load(ordering: .sequentiallyConsistent))
      if comings.load(ordering: .sequentiallyConsistent) == before { return (word, mappers) }
    }
  }

  /// Counts a region that comes (1), before anything is taken off the words, or goes (-1), after everything was put back.
  func addMapper(_ change: Int) {
    mappers.add(change, ordering: .sequentiallyConsistent)
    comings.add(1, ordering: .sequentiallyConsistent)
  }

  /// Whether nobody has a frame.
  func isNobodys(_ frame: Int) -> Bool {
    let (word, mappers) = consistent(frame)
    return mappers + word.mappings == 0
  }

  /// What the metadata says of a frame now.
  @inline(__always) func counts(_ frame: Int) -> FrameCounts {
    let (word, mappers) = consistent(frame)
    return counts(word, mappers: mappers)
  }

  @inline(__always) private func counts(_ word: FrameWord, mappers: Int) -> FrameCounts {
    let mappings = mappers + word.mappings
    return FrameCounts(
      references: mappings + word.extra, mappings: mappings,
      isExclusive: word.flags.contains(.exclusive) || !isShared.load(ordering: .acquiring),
      isFrozen: !word.flags.isDisjoint(with: .changing))
  }

  /// Changes a word in one step; `change` says no by returning `nil`. Returns what was there before and what is there now.
  @discardableResult @inline(__always) func update(
    _ frame: Int, _ change: (FrameWord) -> FrameWord?
  ) -> (before: FrameWord, after: FrameWord)? {
    var before = unsafe words[frame].load(ordering: .acquiring)
    while true {
      guard let after = change(FrameWord(rawValue: before)) else { return nil }
      if before == 0 { tracked.insertVisibly(frame) }
      let (done, seen) = unsafe words[frame].compareExchange(
        expected: before, desired: after.rawValue, ordering: .sequentiallyConsistent)
      if done { return (FrameWord(rawValue: before), after) }
      before = seen
    }
  }

  // MARK: Mappings

  /// Takes a frame that nobody has for one mapping; false if somebody has it. Of a target: that is nobody's base, so its mappers stay 0.
  @inline(__always) func claimFree(_ frame: Int) -> Bool {
    let mappers = mappers.load(ordering: .acquiring)
    return update(frame) { word in
      guard mappers + word.mappings == 0, word.extra == 0, word.flags.isDisjoint(with: .changing) else { return nil }
      var word = word
      word.mappings += 1
      word.flags = .exclusive
      return word
    } != nil
  }

  @inline(__always) func addMapping(_ frame: Int, isExclusive: Bool = false) {
    update(frame) { word in
      var word = word
      word.mappings += 1
      if !isExclusive { word.flags.remove(.exclusive) }
      return word
    }
  }

  /// Adds a mapping while nobody has frozen the references; false if somebody still has when `deadline` is over.
  func addMapping(_ frame: Int, isExclusive: Bool, until deadline: inout Deadline) -> Bool {
    while true {
      let added = update(frame) { word in
        guard !word.flags.contains(.frozen) else { return nil }
        var word = word
        word.mappings += 1
        if !isExclusive { word.flags.remove(.exclusive) }
        return word
      }
      if added != nil { return true }
      if deadline.isOver() { return false }
      Kernel.relax()
    }
  }

  /// The frame is noted as dead if it was the last.
  @inline(__always) func removeMapping(_ frame: Int) {
    update(frame) { word in
      var word = word
      word.mappings -= 1
      return word
    }
    noteIfDead(frame)
  }

  /// Whether nobody has the frame; whoever lets go last finds out, since all changes are totally ordered.
  @inline(__always) func noteIfDead(_ frame: Int) {
    let word = word(frame)
    if mappers.load(ordering: .sequentiallyConsistent) + word.mappings == 0, word.extra == 0 {
      dead.insertVisibly(frame)
    }
  }

  /// Marks a frame as its one mapping's own if that holds the only reference: it has been proven so.
  func markExclusive(_ frame: Int) {
    let (proven, mappers) = consistent(frame)
    update(frame) { word in
      guard word == proven, mappers + word.mappings + word.extra == 1, word.flags.isDisjoint(with: .changing) else {
        return nil
      }
      var word = word
      word.flags.insert(.exclusive)
      return word
    }
  }

  // MARK: References

  /// Takes `amount` references unless the frame has none (it is nobody's) or is dying. While references are frozen it spins: the
  /// frame is never seen as free, and gives no reference (S3). The mappers may be of a moment ago: who calls this has claimed the page, or asks
  /// afterwards whether it has the frame still.
  /// `waits`: or to give up then.
  func tryGet(_ frame: Int, _ amount: Int = 1, waits: Bool = true) -> Bool {
    while true {
      var isFrozen = false
      let mappers = mappers.load(ordering: .acquiring)
      let taken = update(frame) { word in
        isFrozen = word.flags.contains(.frozen)
        guard !isFrozen, !word.flags.contains(.dying), mappers + word.mappings + word.extra > 0,
          word.extra + amount <= FrameWord.maximumExtra
        else { return nil }
        var word = word
        word.extra += amount
        return word
      }
      if taken != nil { return true }
      if !isFrozen || !waits { return false }
      TestHooks.reach(.spinning, page: frame)
      Kernel.relax()
    }
  }

  func put(_ frame: Int, _ amount: Int = 1) {
    update(frame) { word in
      var word = word
      word.extra -= amount
      return word
    }
    noteIfDead(frame)
  }

  /// Takes a pin's references if the frame is this one mapping's own and not changing; false otherwise. `isOwn` is that of one region that
  /// never shared it, or the word's: one step with taking the references, so that whoever shares the frame sees the pin or is seen.
  @inline(__always) func tryPinOwn(_ frame: Int) -> Bool {
    let all = !isShared.load(ordering: .acquiring)
    var before = unsafe words[frame].load(ordering: .relaxed)
    while true {
      let word = FrameWord(rawValue: before)
      guard all || word.flags.contains(.exclusive), word.flags.isDisjoint(with: .changingOrSealed),
        word.extra <= FrameWord.maximumExtra - FrameCounts.pinBias
      else { return false }
      if before == 0 { tracked.insertVisibly(frame) }
      let (done, seen) = unsafe words[frame].compareExchange(
        expected: before, desired: before + UInt64(FrameCounts.pinBias), ordering: .sequentiallyConsistent)
      if done { return true }
      before = seen
    }
  }

  /// Lets a pin's references go. True if nobody has the frame any more.
  @inline(__always) func unpin(_ frame: Int) -> Bool {
    let after = FrameWord(
      rawValue: unsafe words[frame].subtract(UInt64(FrameCounts.pinBias), ordering: .sequentiallyConsistent).newValue)
    guard after.extra == 0, mappers.load(ordering: .sequentiallyConsistent) + after.mappings == 0 else { return false }
    noteIfDead(frame)
    return true
  }

  /// Freezes the references of a frame if they are exactly `count`, mappings included: one atomic step, which fails if anyone else holds
  /// one, also one that arrived a moment ago (P5).
  func freeze(_ frame: Int, expecting count: Int) -> Bool {
    let mappers = mappers.load(ordering: .sequentiallyConsistent)
    TestHooks.reach(.freezing, page: frame)
    let frozen = update(frame) { word in
      guard word.flags.isDisjoint(with: .changing), mappers + word.mappings + word.extra == count else { return nil }
      var word = word
      word.flags.insert(.frozen)
      return word
    }
    guard frozen != nil else { return false }
    // A clone of the whole extent adds to the mappers and then looks for frozen frames: one of the two sees the other.
    if self.mappers.load(ordering: .sequentiallyConsistent) == mappers { return true }
    unfreeze(frame)
    return false
  }

  func unfreeze(_ frame: Int) {
    update(frame) { word in
      var word = word
      word.flags.remove(.frozen)
      return word
    }
  }

  /// Waits until no frame is frozen, or returns one that is when `deadline` is over; called after ``mappers`` has grown.
  func firstFrozen(at deadline: inout Deadline) -> Int? {
    var found: Int?
    // Whoever freezes a frame and then looks at the mappers sees them grown, or is seen here: words are read without an order of their own.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    tracked.forEachRun { run in
      for frame in run where found == nil {
        while word(frame).flags.contains(.frozen) {
          if deadline.isOver() {
            found = frame
            break
          }
          Kernel.relax()
        }
      }
    }
    return found
  }

  // MARK: The page lock

  /// Locks a frame, waiting for at most `patience` nanoseconds: with 0 it is a try. False if somebody else kept it.
  func lock(_ frame: Int, patience: UInt64, _ place: LockPlace = LockPlace()) -> Bool {
    if LockOrder.isOn, patience > 0 { willLock(frame, place) }
    guard lockUnchecked(frame, patience: patience) else { return false }
    if LockOrder.isOn { LockOrder.acquired(.page, "page lock of a frame", key: key, index: frame, place: place) }
    return true
  }

  /// Tells the frames of an extent from others.
  private var key: UInt { UInt(bitPattern: unsafe words) }

  private func willLock(_ frame: Int, _ place: LockPlace) {
    LockOrder.willAcquire(.page, "page lock of a frame", key: key, index: frame, place: place)
  }

  private func lockUnchecked(_ frame: Int, patience: UInt64) -> Bool {
    var deadline = Deadline(patience)
    defer { LockOrder.didWait() }
    while true {
      let isLocked = update(frame) { word in
        guard !word.flags.contains(.locked) else { return nil }
        var word = word
        word.flags.insert(.locked)
        return word
      }
      if isLocked != nil { return true }
      if deadline.isOver() { return false }
      LockOrder.willWait(for: "page lock of a frame", place: LockPlace())
      Kernel.pause(nanoseconds: 5_000)
    }
  }

  func unlock(_ frame: Int) {
    update(frame) { word in
      var word = word
      word.flags.remove(.locked)
      return word
    }
    if LockOrder.isOn { LockOrder.released(key: key) }
  }
}
