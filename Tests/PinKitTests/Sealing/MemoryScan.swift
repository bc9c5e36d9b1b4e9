import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// Looks for secret bytes in all memory of this process that can be read at all, as somebody with `/proc/PID/mem` would. It holds them
/// masked, so it does not find itself.
///
/// For exit tests: other tests of a process map and unmap while it looks.
struct MemoryScan: Sendable {
  private let masked: [UInt8]
  private let mask: UInt8

  /// A secret of random bytes.
  init(count: Int) {
    masked = (0..<count).map { _ in .random(in: .min ... .max) }
    mask = .random(in: 1 ... .max)
  }

  var count: Int { masked.count }

  /// Puts the secret where `bytes` start.
  func place(in bytes: UnsafeMutableRawBufferPointer) {
    precondition(bytes.count >= count)
    unsafe masked.withUnsafeBufferPointer { unsafe ct_unmask(bytes.baseAddress!, $0.baseAddress!, CInt(count), mask) }
  }

  /// Whether the secret is what `bytes` start with.
  func isAt(_ bytes: UnsafeRawBufferPointer) -> Bool {
    for index in 0..<count where unsafe bytes[index] ^ mask != masked[index] { return false }
    return true
  }

  /// How often pieces of 16 bytes, aligned to that within the secret, are in `bytes`.
  func pieces(in bytes: [UInt8]) -> Int {
    var known = Set<[UInt8]>()
    for start in stride(from: 0, to: count - 15, by: 16) { known.insert(masked[start..<start + 16].map { $0 ^ mask }) }
    return stride(from: 0, to: max(0, bytes.count - 15), by: 16).count { known.contains(Array(bytes[$0..<$0 + 16])) }
  }

  /// How often pieces of 16 bytes, aligned to that within the secret, are on the unused part of this thread's stack.
  @inline(never) func piecesBelow() -> Int {
    var here = 0
    let end = unsafe withUnsafePointer(to: &here) { UInt(bitPattern: $0) & ~15 }
    let count = 64 << 10
    var bytes = [UInt8](repeating: 0, count: count)
    let memory = unsafe open("/proc/self/mem", O_RDONLY | O_CLOEXEC)
    defer { close(memory) }
    let got = unsafe bytes.withUnsafeMutableBytes { unsafe pread(memory, $0.baseAddress!, count, off_t(end) - off_t(count)) }
    check(got, is: count, "reading the stack")
    return pieces(in: bytes)
  }

  /// Where the `piece` of the secret is.
  func places(of piece: Range<Int>) -> [UInt64] {
    var found = [UInt64](repeating: 0, count: 64)
    var (scanned, refused): (UInt64, UInt64) = (0, 0)
    let hits = unsafe masked.withUnsafeBufferPointer {
      unsafe ct_scan_memory(
        $0.baseAddress! + piece.lowerBound, CInt(piece.count), mask, &found, CInt(found.count), &scanned, &refused)
    }
    check(hits >= 0 && scanned > 1 << 20, "scan of /proc/self/mem: \(hits), \(scanned) bytes, \(refused) bytes refused")
    return Array(found.prefix(Int(max(0, hits))))
  }

  /// Where 16-byte pieces from all over the secret are: a copy of a part is a copy.
  func places() -> [UInt64] {
    stride(from: 0, to: count, by: max(16, (count - 16) / 7 / 16 * 16)).filter { $0 + 16 <= count }
      .flatMap { places(of: $0..<$0 + 16) }
  }

  /// Records an issue for each place where a piece is, outside of `allowed`.
  func expectNowhere(outside allowed: AddressRange? = nil, _ comment: String = "") {
    let found = places().filter { !(allowed?.contains(UInt($0)) ?? false) }
    guard !found.isEmpty else { return }
    let maps = found.map { place in
      let range = AddressRange(start: UInt(place), count: 1)
      return "0x\(String(place, radix: 16)) \((try? ProcessMaps.mappings(in: range).first?.path) ?? "")"
    }
    Issue.record("\(comment) found at \(maps.joined(separator: ", "))")
  }
}
