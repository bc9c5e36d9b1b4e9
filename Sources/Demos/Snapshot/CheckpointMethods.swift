internal import CFloor
internal import Glibc
internal import PinKit

/// Checkpoints by PinKit: a full image, then increments.
final class PinKitCheckpoints {
  private let region: Region
  private var previous: Snapshot?
  private(set) var images: [SnapshotImage] = []

  init(_ region: Region) { self.region = region }

  func begin(_ path: String) throws -> CheckpointUnderWay {
    let snapshot = try region.snapshot()
    let older = previous
    previous = snapshot
    return CheckpointUnderWay(
      pause: snapshot.pause,
      extraMemory: { Footprint.own - $0 },
      copies: { snapshot.capturedBytes },
      finish: { [self] in
        images.append(try snapshot.write(to: path, since: older, releasing: true))
        snapshot.close()
      })
  }
}

/// Checkpoints by `fork()`: a child that writes its copy of the memory, all of it every time.
struct ForkCheckpoints {
  private let region: Region
  private static let pageSize = 4096

  init(_ region: Region) { self.region = region }

  func begin(_ path: String) throws -> CheckpointUnderWay {
    let file = unsafe open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard file >= 0 else { throw LedgerFailure("create \(path)", errno) }
    var child: Int32 = 0
    let pause = unsafe cfloor_fork_snapshot(
      UInt64(region.addresses.start), region.addresses.count / Self.pageSize, file, &child)
    guard pause >= 0 else {
      close(file)
      throw LedgerFailure("fork", CInt(-pause))
    }
    let process = child
    return CheckpointUnderWay(
      pause: UInt64(pause), extraMemory: { _ in Footprint.unshared(by: process) },
      finish: {
        defer { close(file) }
        let result = cfloor_fork_wait(process)
        if result > 0 { throw LedgerFailure("the child was killed by signal \(result)", EINTR) }
        if result < 0 { throw LedgerFailure("the child's write", -result) }
        // As long as PinKit takes it: until the copy survives a power failure.
        if fsync(file) != 0 { throw LedgerFailure("fsync \(path)", errno) }
      })
  }
}
