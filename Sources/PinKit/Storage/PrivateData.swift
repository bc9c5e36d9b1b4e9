internal import Synchronization

/// What a program has attached to frames: buffer heads, checksums, whatever must go before the frame does.
///
/// Each holds a reference to its frame, so that nobody reclaims a frame behind its back.
final class PrivateData: RegionAttachment {
  private final class Box: Sendable {
    let object: any AnyObject & Sendable
    let reference: FrameReference
    init(_ object: any AnyObject & Sendable, _ reference: consuming FrameReference) {
      self.object = object
      self.reference = reference
    }
  }
  private let entries = Mutex<[Int: Box]>([:])

  func regionWillUnmap() { entries.withLock { $0 = [:] } }

  func object(of page: Int) -> (any AnyObject & Sendable)? { entries.withLock { $0[page]?.object } }

  /// False if the page has some already.
  func attach(_ object: any AnyObject & Sendable, to page: Int, _ reference: consuming FrameReference) -> Bool {
    let box = Box(object, reference)
    return entries.withLock { list in
      if list[page] != nil { return false }
      list[page] = box
      return true
    }
  }

  /// Takes the data of a page if nobody else has a reference to its frame, which is locked: in one atomic step, so that one that arrived
  /// after `check` said that the frame may be given up is seen (P5).
  func release(_ page: Int, _ check: () throws(PinError) -> Void) throws(PinError) -> (any AnyObject & Sendable)? {
    guard let box = entries.withLock({ $0[page] }) else { return nil }
    try check()
    TestHooks.reach(.releasing, page: page)
    // One mapping, and the data's own.
    guard box.reference.freeze(expecting: 2) else {
      let state = box.reference.state
      throw PinError(
        state.counts.mayBePinned ? .pinned : .busy, operation: "release the private data of page \(page)",
        advice:
          "\(state.frame) has \(state.counts.references - 2) references more than its mapping and the data: try again when they are gone."
      )
    }
    let object = box.object
    _ = entries.withLock { $0.removeValue(forKey: page) }
    box.reference.unfreeze()
    return object
  }
}

extension Region {
  /// Attaches data to the frame of a page, which holds a reference to it from now on: the frame is not reclaimed, and a break of sharing
  /// leaves the data with the frame that the page had.
  ///
  /// - Throws: ``PinError``: `.alreadyExists` if the page has some; as ``lookUp(_:)``.
  public func attach(_ object: any AnyObject & Sendable, to page: Int) throws(PinError) {
    let reference = try lookUp(page)
    let data = try attachments.findOrMake(PrivateData.self) { PrivateData() }
    guard data.attach(object, to: page, reference) else {
      throw PinError(
        .alreadyExists, operation: "attach data to page \(page)", range: addressesUnchecked(of: page..<page + 1),
        advice: "Release what is attached first.")
    }
  }

  /// What is attached to a page, if anything is.
  public func privateData(of page: Int) -> (any AnyObject & Sendable)? {
    attachments.find(PrivateData.self)?.object(of: page)
  }

  /// Gives the data of a page back, if its frame is clean, not locked, and provably nobody's but the page's and the data's: its references are
  /// frozen for the step, so that one which arrived a moment ago, after all had been checked, is seen (P5).
  ///
  /// - Returns: What was attached; `nil` if nothing was.
  /// - Throws: ``PinError``: `.pinned`, or `.busy` for a frame that is dirty, under writeback, locked or looked up; nothing has changed then.
  ///   Waits for nobody.
  public func tryRelease(_ page: Int) throws(PinError) -> (any AnyObject & Sendable)? {
    try requireOutsideFaultPath("tryRelease")
    let frames = try pageFrames("tryRelease", page)
    try enter("tryRelease")
    defer { leave() }
    guard let data = attachments.find(PrivateData.self) else { return nil }
    let extent = unsafe frames.extent(of: page)
    guard unsafe extent.pointee.lock(page, patience: 0) else {
      throw PinError(.busy, operation: "release the private data of page \(page)", advice: "Its frame is locked.")
    }
    defer { unsafe extent.pointee.unlock(page) }
    return try data.release(page) { () throws(PinError) in
      guard let file = attachments.find(FilePages.self) else { return }
      if file.dirty.contains(page) || file.writeback.contains(page) || file.unflushed.contains(page) {
        throw PinError(
          .busy, operation: "release the private data of page \(page)", advice: "It has changed: flush the region first.")
      }
    }
  }
}
