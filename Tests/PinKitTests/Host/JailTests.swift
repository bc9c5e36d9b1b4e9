import CTestSupport
import Foundation
import Glibc
import Logging
import SystemPackage
import Testing

@testable import PinKit

/// K5: a daemon that locks itself in after it has started.
@Suite("K5: without /proc", .enabled(if: geteuid() == 0, "chroot(2) and mount(2) need root")) struct JailTests {
  enum Jail: String, Sendable, Codable, CaseIterable {
    case chroot, coveredProc

    func prepare() { if self == .coveredProc { check(ct_own_mounts(), is: 0) } }
    func enter() throws {
      switch self {
      case .chroot:
        let directory = "/tmp/pinkit-jail-\(getpid())"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        check(unsafe ct_enter_jail(directory), is: 0)
      case .coveredProc: check(ct_cover_proc(), is: 0)
      }
      check(unsafe open("/proc/self/maps", O_RDONLY) < 0, "/proc is there")
    }
  }

  static func cleanUp() {
    for name in (try? FileManager.default.contentsOfDirectory(atPath: "/tmp")) ?? [] where name.hasPrefix("pinkit-jail-") {
      _ = unsafe rmdir("/tmp/" + name)
    }
  }

  @Test("Tracking, snapshots and clones go on, and nobody is accused", arguments: Mechanisms.all, Jail.allCases)
  func goesOn(_ mechanism: WriteTracking.Mechanism, jail: Jail) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, jail = jail as Jail] in
      ct_deadline(240)
      jail.prepare()
      let log = LogCapture()
      let tracked = try Tracked(mechanism, configure: { $0.logger = log.logger })
      try jail.enter()
      let handler = try tracked.space.faultHandler()
      for _ in 0..<20 {
        handler.alarm.signal()
        Kernel.pause(nanoseconds: 5_000_000)
        try tracked.expectExact()
      }
      // What is made in there works, too.
      let parent = try tracked.space.map(.pool, pages: 16)
      try parent.fill(with: 2)
      let synchronous: WriteTracking.Mechanism = mechanism == .asynchronous ? .handlerThread : mechanism
      let child = try parent.clone(mechanism: synchronous)
      child.poke(3, 4)
      check(parent.peek(4), is: 2)
      let snapshot = try parent.snapshot(SnapshotOptions(mechanism: synchronous))
      parent.poke(5, 6)
      try check(snapshot.read(6)[0], is: 2)
      let again = try tracked.space.map(pages: 8)
      let tracker = try again.trackWrites(mechanism)
      again.poke(1, 3)
      _ = try tracker.collect()
      again.poke(1, 5)
      try check(tracker.collect().runs, is: [5..<6])
      check(log.texts(.error) + log.texts(.critical), is: [])
      // A child closes what it must, without being told what is what.
      let process = ct_fork()
      if process == 0 { ct_exit(ct_userfaultfd_count_by_ioctl()) }
      check(ct_wait(process), is: 0)
      snapshot.close()
      try tracked.close()
      check(ct_userfaultfd_count_by_ioctl(), is: 0)
    }
    Self.cleanUp()
  }

  @Test("What cannot do without /proc says so", arguments: Jail.allCases)
  func typedErrors(_ jail: Jail) async {
    await #expect(processExitsWith: .success) { [jail = jail as Jail] in
      ct_deadline(240)
      jail.prepare()
      let space = try AddressSpace()
      let start = ct_map_anonymous(16 * 4096, 0)
      try jail.enter()
      var error: PinError?
      do throws(PinError) {
        _ = try space.adopt(AddressRange(start: UInt(start), count: 16 * 4096))
      } catch let refused { error = refused }
      check(error?.code, is: .unsupported)
      check(error?.advice.contains("/proc") == true, "\(String(describing: error))")
      let file = try MemoryFile(name: "store", size: 8192)
      error = nil
      do throws(PinError) { _ = try FileStore(descriptor: .init(rawValue: file.descriptor)) } catch let refused {
        error = refused
      }
      check(error?.code, is: .unsupported)
      check(error?.advice.contains("/proc") == true, "\(String(describing: error))")
      try space.close()
    }
    Self.cleanUp()
  }
}
