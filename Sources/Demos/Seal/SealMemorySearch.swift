internal import CFloor
internal import Foundation
internal import Glibc
internal import PinKit

/// Somebody who may read all of a process's memory, and looks for secrets.
enum SealMemorySearch {
  enum Way: String, CaseIterable { case memoryFile = "/proc/PID/mem", processCall = "process_vm_readv" }

  struct Found {
    /// How often each was found: by the number of the secret.
    var hits: [Int: Int] = [:]
    var bytes = 0
    /// Bytes that could not be read.
    var refused = 0
  }

  private static let window = 1 << 20
  private static let page = 4096

  static func search(_ process: Int32, _ way: Way, for needles: SealNeedles) throws -> Found {
    let descriptor = unsafe open("/proc/\(process)/mem", O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw SealReaderScene.Fault(description: "/proc/\(process)/mem: errno \(errno)") }
    defer { close(descriptor) }
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: window, alignment: 4096)
    defer { unsafe buffer.deallocate() }
    var found = Found()
    for range in try ranges(process) {
      var at = range.lowerBound
      while at < range.upperBound {
        let count = min(window, Int(range.upperBound - at))
        let start = buffer.baseAddress!
        let got =
          switch way {
          case .memoryFile: unsafe Int64(pread(descriptor, start, count, off_t(at)))
          case .processCall: unsafe cfloor_read_process(process, at, start, count)
          }
        guard got > 0 else {
          found.refused += page
          at += UInt64(page)
          continue
        }
        found.bytes += Int(got)
        let bytes = unsafe UnsafeRawBufferPointer(start: start, count: Int(got))
        for index in unsafe needles.found(in: bytes) { found.hits[index, default: 0] += 1 }
        // The next window begins where a secret could that this one cuts.
        let isLast = at + UInt64(got) >= range.upperBound || Int(got) < count
        at += UInt64(got) - (isLast ? 0 : UInt64(SealNeedles.size - 1))
      }
    }
    return found
  }

  /// How often each secret is in a file.
  static func search(file: String, for needles: SealNeedles) throws -> Found {
    let bytes = try Data(contentsOf: URL(fileURLWithPath: file), options: .alwaysMapped)
    var found = Found(bytes: bytes.count)
    for index in unsafe bytes.withUnsafeBytes({ unsafe needles.found(in: $0) }) { found.hits[index, default: 0] += 1 }
    return found
  }

  /// What the kernel keeps for itself cannot be read: `[vvar]`, and `[vsyscall]` lies beyond what can be addressed.
  private static func ranges(_ process: Int32) throws -> [Range<UInt64>] {
    let text = try maps(process)
    return text.split(separator: "\n").compactMap { line in
      let ends = line.prefix { $0 != " " }.split(separator: "-").compactMap { UInt64($0, radix: 16) }
      guard ends.count == 2, !line.contains("[v") else { return nil }
      return ends[0]..<ends[1]
    }
  }

  /// Read to its end: each read(2) gives a part.
  private static func maps(_ process: Int32) throws -> String {
    let descriptor = unsafe open("/proc/\(process)/maps", O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw SealReaderScene.Fault(description: "/proc/\(process)/maps: errno \(errno)") }
    defer { close(descriptor) }
    var text: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let got = unsafe read(descriptor, &part, part.count)
      guard got > 0 else { return String(decoding: text, as: UTF8.self) }
      text += part[..<got]
    }
  }
}
