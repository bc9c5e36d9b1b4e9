internal import CSealing
internal import Glibc
public import PinKit
internal import Synchronization

/// Seals pages with AES-256-GCM, by the BoringSSL that swift-crypto brings.
///
/// The expanded key lies in a ``PinKit/KeyPage`` and nowhere else; the page is sealed and opened in place; nothing is allocated. After each
/// call the vector registers and the stack below it are cleared.
///
/// **Nonces.** 96 bits: the value of a counter that starts at a random number. Within one sealer no two are the same. Two sealers
/// with the same key (one that was read from a file, say) draw their starting points from 2⁹⁶: that runs of `q` nonces each overlap
/// has a probability below `2q / 2⁹⁶`. A sealer stops with `.limitReached` after 2⁴⁰ pages (``sealLimit``): with pages of 4 KiB those are
/// 2⁴⁸ blocks, for which a block cipher of 128 bits can be told from chance with a probability of 2⁻³³ at most, NIST's bound being 2⁻³².
///
/// **Identity.** The region, the page and the generation are authenticated, 64 bits each.
@safe public final class AESGCMSealer: PageSealer {
  /// In bytes: a nonce of 12 and a tag of 16.
  public static let recordSize = cseal_nonce_bytes + cseal_tag_bytes
  /// How many pages a sealer seals before it wants a successor with another key.
  public static let sealLimit: UInt64 = 1 << 40

  public var recordSize: Int { Self.recordSize }
  /// How the expanded key is protected.
  public let keyProtection: KeyPage.Protection
  /// In bytes: the largest page that it seals.
  public let largestPage: Int

  private let schedule: KeyPage
  private let isClosed = Atomic<Bool>(false)
  private let slots: Slots
  private let firstNonce: (UInt32, UInt64)
  private let sealed: Atomic<UInt64>

  /// A sealer with a random key that nobody else has.
  ///
  /// - Parameter largestPage: In bytes. A few times as many are allocated as there are processors.
  /// - Throws: `.limitReached` where RLIMIT_MEMLOCK does not allow a key page, `.invalidArgument` for pages of no bytes, `.outOfMemory` for
  ///   pages of too many.
  public convenience init(largestPage: Int = 4096) throws(PinError) {
    try self.init(key: KeyPage(randomByteCount: cseal_key_bytes), largestPage: largestPage)
  }

  /// A sealer with a key of 32 bytes, whose page is wiped: the sealer keeps an expanded key in one of its own.
  ///
  /// - Throws: `.invalidArgument` for a key of another size, `.limitReached` where RLIMIT_MEMLOCK does not allow another key page.
  public convenience init(key: consuming KeyPage, largestPage: Int = 4096) throws(PinError) {
    try self.init(key: key, largestPage: largestPage, alreadySealed: 0)
  }

  init(key: consuming KeyPage, largestPage: Int, alreadySealed: UInt64) throws(PinError) {
    guard key.count == cseal_key_bytes, largestPage > 0 else {
      throw PinError(
        .invalidArgument, operation: "a sealer with a key of \(key.count) bytes for pages of \(largestPage)",
        advice: "AES-256-GCM takes a key of 32 bytes.")
    }
    schedule = try unsafe KeyPage(count: cseal_schedule_bytes()) { (bytes) throws(PinError) in
      let expanded = try unsafe key.withUnsafeBytes { (key) throws(PinError) in
        unsafe cseal_expand(bytes.baseAddress!, key.baseAddress!.assumingMemoryBound(to: UInt8.self))
      }
      guard expanded == 1 else { throw PinError(.system, operation: "EVP_AEAD_CTX_init") }
    }
    keyProtection = schedule.protection
    self.largestPage = largestPage
    slots = try Slots(scratchSize: largestPage)
    firstNonce = (.random(in: .min ... .max), .random(in: .min ... .max))
    sealed = Atomic(alreadySealed)
  }

  /// Waits for the calls that are under way and wipes the key: sealing and opening throw `.keyGone` from now on, and what is sealed stays
  /// so. Dropping the sealer does the same. In a child of `fork()` it does nothing: the key is not there.
  public func close() {
    guard (try? schedule.checkUsable()) != nil else { return }
    isClosed.store(true, ordering: .releasing)
    slots.waitForAll()
    schedule.close()
  }

  /// BoringSSL allocates a list of errors for each thread in which a call fails for the first time.
  public func prepareThread() { cseal_prepare_thread() }

  public func seal(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeMutableRawBufferPointer
  ) throws(PinError) {
    try unsafe checkSizes(UnsafeRawBufferPointer(page), UnsafeRawBufferPointer(record), "sealing")
    try schedule.checkUsable()
    let slot = slots.claim()
    defer { slots.release(slot) }
    try checkOpen()
    try unsafe writeNonce(to: record)
    var associated = Associated(identity)
    let (bytes, count) = unsafe (record.baseAddress!.assumingMemoryBound(to: UInt8.self), page.count)
    let done = unsafe cseal_seal(
      schedule.start, bytes, &associated, MemoryLayout<Associated>.size, page.baseAddress!, count,
      bytes + cseal_nonce_bytes)
    guard done == 1 else { throw PinError(.system, operation: "EVP_AEAD_CTX_seal_scatter") }
  }

  public func open(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeRawBufferPointer
  ) throws(PinError) {
    try unsafe checkSizes(UnsafeRawBufferPointer(page), record, "opening")
    try schedule.checkUsable()
    let slot = slots.claim()
    defer { slots.release(slot) }
    try checkOpen()
    var associated = Associated(identity)
    let (bytes, count) = unsafe (record.baseAddress!.assumingMemoryBound(to: UInt8.self), page.count)
    let done = unsafe cseal_open(
      schedule.start, bytes, &associated, MemoryLayout<Associated>.size, page.baseAddress!, count,
      bytes + cseal_nonce_bytes, slots.scratch(of: slot))
    guard done == 1 else {
      // Literals, and the identity is the caller's own: this may be a fault, which allocates nothing (K2).
      throw PinError(
        .tampered, operation: "open a page", range: AddressRange(start: UInt(bitPattern: page.baseAddress!), count: count),
        advice:
          "Its sealed bytes or its record were changed, or belong to another page, or to an earlier sealing: nobody can open it. Find out who writes there."
      )
    }
  }

  private struct Associated {
    let region: UInt64
    let page: UInt64
    let generation: UInt64
    init(_ identity: PageIdentity) {
      region = identity.region.littleEndian
      page = UInt64(bitPattern: Int64(identity.page)).littleEndian
      generation = identity.generation.littleEndian
    }
  }

  private func writeNonce(to record: UnsafeMutableRawBufferPointer) throws(PinError) {
    // Relaxed: all that matters is that no two threads get the same number.
    let number = sealed.add(1, ordering: .relaxed).oldValue
    guard number < Self.sealLimit else {
      throw PinError(
        .limitReached, operation: "sealing", advice: "This key has sealed 2⁴⁰ pages: make a sealer with another key.")
    }
    unsafe record.storeBytes(of: firstNonce.0, as: UInt32.self)
    unsafe record.storeBytes(of: firstNonce.1 &+ number, toByteOffset: 4, as: UInt64.self)
  }

  private func checkOpen() throws(PinError) {
    guard !isClosed.load(ordering: .acquiring) else {
      throw PinError(.keyGone, operation: "sealing or opening", advice: "The sealer was closed; make another one.")
    }
  }

  private func checkSizes(
    _ page: UnsafeRawBufferPointer, _ record: UnsafeRawBufferPointer, _ operation: StaticString
  ) throws(PinError) {
    guard page.count > 0, page.count <= largestPage, record.count >= Self.recordSize else {
      throw PinError(
        .invalidArgument, operation: "\(operation) \(page.count) bytes with a record of \(record.count)",
        advice: "The page has 1 to \(largestPage) bytes (`largestPage`), and the record \(Self.recordSize).")
    }
  }
}
