/// What there is to do where pages are copied whose bytes are not to be had as they are: the decision that sealing plugs into snapshots and
/// clones. The same rules apply as for ``AccessDecision``, which every one of a region is.
class CopyDecision: AccessDecision, @unchecked Sendable {  // subclasses hold atomics and preallocated memory only
  /// Notes what a snapshot finds sealed at its moment, under the exclusive lock.
  func noteMoment(_ store: CaptureStore) {}
  /// Copies the bytes of pages as they are, sealed or not, for who knows what they were.
  func copyAsTheyAre(_ pages: Range<Int>, into target: UnsafeMutableRawPointer) {}

  /// What a clone decides with. Nobody has seen it yet.
  func inherited(by child: Region) throws(PinError) -> CopyDecision? { nil }
  /// Under the exclusive lock; the clone has copies of the frames.
  func handOver(to child: CopyDecision) {}
  /// The clone is protected, and about to be seen.
  func begin(_ region: Region) throws(PinError) {}
}

extension Region {
  /// ``Region/seals``.
  var copyDecision: CopyDecision? { seals as? CopyDecision }
}

/// Which pages were sealed at the moment of a snapshot.
struct SealMoment: Sendable {
  let sealed: DirtySet
  /// What opens them, as whoever sealed them wrote it.
  let records: [Int: [UInt8]]
}
