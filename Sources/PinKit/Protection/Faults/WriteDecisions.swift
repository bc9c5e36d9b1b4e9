internal import Synchronization

/// What must be kept before a page changes: the decision that snapshots plug into the fault path.
///
/// A fault domain has at most one; it is replaced under the exclusive wrprotect lock. Its methods run under the shared lock, on a
/// reader thread or in a signal handler: they allocate nothing, and they read nothing that a fault would have to be served for (K2).
class OwedBytes: @unchecked Sendable {  // subclasses hold atomics and preallocated memory only
  enum Verdict: Sendable, Hashable {
    /// Nothing is owed for these pages any more.
    case kept
    /// There is no room for the bytes now: the writer has to wait.
    case held
  }

  /// Keeps the bytes of `pages`, which this thread has claimed and nobody can write.
  func keep(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> Verdict { .kept }

  /// The same for pages that nobody waits for, or not for all of them: where there is no room, nobody is held and nothing is given up.
  func keepAhead(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> Verdict { .kept }

  /// The pages around `page`, among `pages`, that were not found without bytes: guard pages, and what lies behind the end of a file.
  func readable(around page: Int, in pages: Range<Int>) -> Range<Int> { pages }

  /// The kernel drops `pages` behind PinKit's back: their bytes cannot be kept any more. `isQuiet` says whether nothing has been kept since
  /// the drop may have begun, so that what is on record as kept was kept before: to be asked after the record was looked at.
  func lose(_ pages: Range<Int>, isQuiet: () -> Bool) {}
}

/// What must be kept before ``Region/discard(_:whilePinned:)`` drops pages: the decision that snapshots plug in beside ``OwedBytes``. Not in the
/// fault path.
class DropDecision: @unchecked Sendable {  // no state
  /// Runs `drop`, which drops `pages`, after what is owed of them has been kept. `Region.discarding` is held shared: no snapshot
  /// can be taken in between.
  ///
  /// - Returns: False if there is no room for the bytes now; nothing has happened then.
  func keeping(_ pages: Range<Int>, _ drop: () throws(PinError) -> Void) throws(PinError) -> Bool {
    try drop()
    return true
  }
}

/// Whether a write may reuse the frame it hits: the decision that clones plug into the fault path. The same rules apply as for
/// ``OwedBytes``.
class FrameSharing: @unchecked Sendable {  // subclasses hold atomics and preallocated memory only
  /// Decides on `page`, and says for which of `pages` around it the same is true. The pages are claimed. Where it decides for a copy, there
  /// may be pages among them that are open and have frames of their own already.
  func decide(_ page: Int, among pages: Range<Int>) -> (decision: ReuseDecision, pages: Range<Int>) { (.reuse, pages) }

  /// Gives `pages` frames of their own with the same bytes, but for those that have. They are writable then, and nobody has been woken.
  /// Where mappings are scarce it takes more pages along, and records those itself.
  func copy(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution { .failed }

  /// Copies `pages`, which could be written in place if the kernel had a mapping left for that, together with their neighbours.
  func copyInstead(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution { .failed }

  /// Gives a page that others share a frame of its own with the same bytes, and leaves it as protected as it was: for who reads only (P10).
  func unshare(_ page: Int, in domain: borrowing FaultDomain) -> Unsharing { .failed }

  enum Unsharing: Sendable, Hashable {
    case done
    /// It has its own frame, and was written, or may have been, before it was protected there.
    case written
    /// Nothing has changed: as in ``FaultResolution``.
    case retry, failed
  }

  /// Makes `pages` read as zeros: those whose frames others have get empty frames of their own, and who waits for them is woken. Not in the
  /// fault path; 0 or a negative errno.
  func leave(_ pages: Range<Int>, in domain: borrowing FaultDomain, _ invalidation: inout Invalidation?) -> CInt { 0 }

}

/// Who may have the bytes of a page at all: the decision that sealing plugs into the fault path. The same rules apply as for ``OwedBytes``.
class AccessDecision: PooledPages, @unchecked Sendable {  // subclasses hold atomics and preallocated memory only
  /// Lets a fault at `page`, which is claimed: opens the page if need be. `nil`, or why not.
  func admit(_ page: Int, in domain: borrowing FaultDomain) -> AccessRefusal? { nil }
  /// Before the calling thread admits its first fault, with nothing locked: what it has to allocate for that.
  func prepareThread() {}
  func isSealed(_ page: Int) -> Bool { false }
  /// Whether there may be bytes that are not to be read as they are.
  var mayHaveSealedBytes: Bool { false }
  /// Whether whoever touches the page gets an error.
  func isRefused(_ page: Int) -> Bool { false }
  /// `pages` are mapped again.
  func noteUse(_ pages: Range<Int>) {}
  /// As the fault path knows it.
  final var address: UInt { unsafe UInt(bitPattern: Unmanaged.passUnretained(self as AccessDecision).toOpaque()) }

  // For who does not fault, and gets an error.

  /// As ``admit(_:in:)``; `isFault` says whether whoever is refused will touch the page.
  func letIn(_ page: Int, isFault: Bool, in domain: borrowing FaultDomain) -> AccessRefusal? { nil }
  /// Opens `pages` for who has marked them as pending, or does not mind that they may be closed again at once.
  ///
  /// - Parameter insists: Also where an access is configured to fail: it was asked for by name.
  func makeAccessible(_ pages: Range<Int>, insists: Bool) throws(PinError) {}
  /// Opens `pages` for who needs all of them or none. Where one does not open, those before it are open; what can be told beforehand leaves
  /// all of them as they are.
  func requireOpenable(_ pages: Range<Int>) throws(PinError) {}
  func error(_ refusal: AccessRefusal, _ page: Int) -> PinError { PinError(.sealed, operation: "open page \(page)") }
  /// `pages` are about to be dropped: has those whose bytes are not to be read read as zeros.
  func forget(_ pages: Range<Int>) throws(PinError) {}
}

extension Region {
  /// Who may have the bytes of its pages, if anybody decides that: a look at a flag where nobody ever did.
  @inline(__always) var seals: AccessDecision? {
    hasSeals.load(ordering: .relaxed) ? attachments.find(AccessDecision.self) : nil
  }
}

/// Why the bytes of a page are not to be had.
enum AccessRefusal: Sendable, Hashable {
  case sealed, poisoned, keyGone
  /// A snapshot has no room for them as they are.
  case held
  /// The region has failed, maybe in the middle of opening or sealing a page.
  case lost
}

/// Where pages come from that are not there yet, and who must agree before they are written: the decisions that stores plug into the fault
/// path. The same rules apply as for ``OwedBytes``.
class PageSource: PooledPages, @unchecked Sendable {  // subclasses hold atomics and preallocated memory only
  /// Brings a page in that somebody touches, with some of its neighbours, or has another thread do so.
  ///
  /// - Parameter buffer: For the bytes on their way.
  func supply(
    _ page: Int, through buffer: AddressRange, in domain: borrowing FaultDomain, noteClaims: (Range<Int>) -> Void
  ) -> FaultResolution { .failed }

  /// What the source says to a page's being written.
  enum Admission {
    /// Its frame, of this extent, is locked until ``dismiss(_:_:)``.
    case admitted(UInt)
    case refused(FaultResolution)
  }

  /// Asks whether `page`, which is claimed and not open, may be written.
  func admit(_ page: Int, in domain: borrowing FaultDomain) -> Admission { .admitted(0) }
  func dismiss(_ page: Int, _ extent: UInt) {}

  /// Whether the page is there.
  func isPresent(_ page: Int) -> Bool { true }
  /// Brings `pages` in, and keeps all pages from being reclaimed until ``mayLeave()``; false if the store cannot, and then nothing has to be
  /// let go of. Waits; not for the fault path.
  func holdPresent(_ pages: Range<Int>) -> Bool { true }
  func mayLeave() {}
  /// Whether its bytes are being written to the store at this moment, and may not change.
  func isUnderWriteback(_ page: Int) -> Bool { false }
  /// Whether it has agreed to the page's being written, since it was last cleaned.
  func isGranted(_ page: Int) -> Bool { true }
  func mayTakeAlong(_ page: Int) -> Bool { true }
  /// `pages`, which are claimed, are about to become writable.
  func willOpen(_ pages: Range<Int>) {}
  /// The kernel drops `pages` behind PinKit's back.
  func lose(_ pages: Range<Int>) {}
  /// Whether whoever touches the page now shall get an error.
  func isRefused(_ page: Int) -> Bool { false }
}
