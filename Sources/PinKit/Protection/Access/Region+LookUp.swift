extension Region {
  /// Looks up the frame of a page speculatively, as the kernel does: takes a reference unless the frame is nobody's, then checks that
  /// the page still has that frame, and starts again if it does not. While references of the frame are frozen it spins (S3). Takes no
  /// lock.
  ///
  /// - Throws: ``PinError``: `.unsupported` for memory that is not of a pool, `.outOfBounds`, `.unmapped`, `.limitReached`; of a page
  ///   over a store what the store says; of a sealed page `.sealed`, `.tampered` or `.keyGone`.
  public func lookUp(_ page: Int) throws(PinError) -> FrameReference {
    _ = try pageFrames("lookUp", page)
    try enter("lookUp")
    defer { leave() }
    return try lookUpInside(page)
  }

  /// The same for who has entered the region.
  func lookUpInside(_ page: Int) throws(PinError) -> FrameReference {
    let frames = try pageFrames("lookUp", page)
    let supply = supply
    while true {
      let extent = unsafe frames.extent(of: page)
      // Nobody's: the page is changing its frame at this moment.
      guard unsafe extent.pointee.tryGet(page) else {
        if unsafe extent.pointee.word(page).extra == FrameWord.maximumExtra {
          throw PinError(.limitReached, operation: "lookUp", range: addresses, advice: "The frame has too many references.")
        }
        Kernel.relax()
        continue
      }
      // With a reference it cannot be reclaimed any more; whoever read the frame before its bytes were there would see zeros.
      if let supply, !supply.isPresent(page) {
        unsafe extent.pointee.put(page)
        try supply.prepare(page..<page + 1, toWrite: false)
        continue
      }
      // With a reference it cannot be sealed any more (S1).
      do throws(PinError) { try seals?.makeAccessible(page..<page + 1, insists: false) } catch {
        unsafe extent.pointee.put(page)
        throw error
      }
      if unsafe frames.extent(of: page) == extent {
        return unsafe FrameReference(pool: frames.pool, extent: extent, index: page)
      }
      unsafe extent.pointee.put(page)
      frames.pool.noteDead()
    }
  }

  /// What the metadata of a page's frame says now. Counts a mapping for each page that *may* map the frame, touched or not; the
  /// kernel's `/proc/kpagecount` counts those that were touched (K1).
  ///
  /// - Throws: As ``lookUp(_:)``.
  public func frameState(_ page: Int) throws(PinError) -> FrameState {
    let frames = try pageFrames("frameState", page)
    try enter("frameState")
    defer { leave() }
    var state = unsafe FrameReference.state(of: frames.extent(of: page), page)
    if let supply {
      (state.isDirty, state.isUnderWriteback) = (supply.isDirty(page), supply.isUnderWriteback(page))
    }
    return state
  }

  func pageFrames(_ operation: String, _ page: Int) throws(PinError) -> RegionFrames {
    guard let frames else {
      throw PinError(
        .unsupported, operation: operation, range: addresses,
        advice: "The backing is \(backing), whose pages have no frames of a pool: map the region as .pool.")
    }
    try requirePage(page)
    return frames
  }
}
