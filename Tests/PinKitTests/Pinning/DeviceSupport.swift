import CDevices
import CTestSupport
import Glibc

@testable import PinKit

/// An AF_XDP socket: its driver pins memory for writing under a lock of its own, and cannot wait for a fault.
enum Umem {
  /// Whether the kernel has it and lets us.
  static let isAvailable: Bool = {
    let memory = ct_map_anonymous(8192, 0)
    defer { Mapping.unmap(AddressRange(start: UInt(memory), count: 8192)) }
    return allows(AddressRange(start: UInt(memory), count: 8192))
  }()

  struct Refusal: Error { let errno: CInt }

  /// The socket, which is closed to undo it.
  static func register(_ bytes: UnsafeMutableRawBufferPointer) throws -> CInt {
    let socket = cdev_register_umem(UInt64(UInt(bitPattern: bytes.baseAddress)), UInt64(bytes.count))
    if socket < 0 { throw Refusal(errno: -socket) }
    return socket
  }

  /// 0, or the errno that it answers.
  static func errno(_ range: AddressRange) -> CInt {
    let socket = cdev_register_umem(UInt64(range.start), UInt64(range.count))
    if socket < 0 { return -socket }
    close(socket)
    return 0
  }

  static func allows(_ range: AddressRange) -> Bool { errno(range) == 0 }
  /// What a driver answers that would have had to wait for a fault.
  static let refusals: Set<CInt> = [EFAULT, ENOMEM]
}

extension Region {
  func addresses(of page: Int) -> AddressRange { addressesUnchecked(of: page..<page + 1) }

  /// Whether the driver takes pages where the region maps them.
  func umemErrno(_ pages: Range<Int>) -> CInt { Umem.errno(addressesUnchecked(of: pages)) }

  /// Writes a byte as a device does: the kernel pins the memory, and no right of the process is asked for more than once.
  static func deviceWrite(_ value: UInt8, to address: UInt) -> Bool {
    var value = value
    return unsafe ct_move_pinned(UInt64(address), &value, 1, 1) == 1
  }
}

/// A file whose direct reads take as long as a test wants.
final class SlowDevice: Sendable {
  static let byte: UInt8 = 0x5d
  private let device: UInt
  private let directory: String

  static let isAvailable: Bool = (try? SlowDevice()) != nil

  init() throws {
    var path = Array("/tmp/pinkit-slow-XXXXXX".utf8CString)
    guard unsafe mkdtemp(&path) != nil else { throw PinError(.unsupported, operation: "mkdtemp") }
    directory = String(decoding: path.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    var made: OpaquePointer?
    let result = unsafe cdev_slow_device_start(directory, Self.byte, &made)
    guard result == 0, let made = unsafe made else {
      unsafe rmdir(directory)
      throw PinError(.unsupported, operation: "mount a FUSE file system (\(-result))")
    }
    device = UInt(bitPattern: made)
  }

  deinit {
    unsafe cdev_slow_device_end(pointer)
    unsafe rmdir(directory)
  }

  private var pointer: OpaquePointer { unsafe OpaquePointer(bitPattern: device)! }

  /// Starts a read into memory, which returns when it has arrived and waits. `finish` lets it go on, and returns how many bytes there were.
  func read(into range: AddressRange) throws -> () throws -> Int {
    let file = unsafe cdev_slow_device_open(pointer)
    guard file >= 0 else { throw PinError(.unsupported, operation: "open (\(-file))") }
    unsafe cdev_slow_device_hold(pointer, 1)
    let moved = Shared()
    let thread = TestThread {
      moved.value = cdev_read_at(file, UInt64(range.start), range.count, 0)
      close(file)
    }
    guard spin(until: { unsafe cdev_slow_device_waiting(pointer) == 1 || thread.hasEnded }) else {
      throw PinError(.timedOut, operation: "read a slow device")
    }
    return {
      unsafe cdev_slow_device_hold(self.pointer, 0)
      try thread.join()
      return moved.value
    }
  }
}
