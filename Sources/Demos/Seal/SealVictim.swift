internal import Foundation
internal import Glibc
internal import PinKit
internal import Terminal

/// The other side of ``SealVictimProcess``: a process that has keys, and does what it is told.
package enum SealVictim {
  package static func run() throws {
    guard let line = readLine(), let needles = SealNeedles(line) else { throw POSIXError(.EINVAL) }
    // The last is kept in plain, where everything is that a program does not seal: who finds nothing else has looked, at least.
    let canary = UnsafeMutablePointer<UInt8>.allocate(capacity: SealNeedles.size)
    let last = needles.masked.count - 1
    for (index, byte) in needles.masked[last].enumerated() { unsafe canary[index] = byte ^ needles.mask }
    let store = try SealKeyStore(needles.withoutLast, SealingOptions(onAccess: .fail))
    answer("ready")
    while let line = readLine() {
      switch line {
      case "seal":
        try store.region.seal(store.pages)
        answer("sealed \(try store.sealed.count { $0 })")
      case "tamper":
        try store.tamper(3)
        do throws(PinError) {
          try store.region.makeAccessible(3..<4)
          answer("opened")
        } catch { answer("\(error.code)") }
      case "touch":
        let address = unsafe UnsafePointer<UInt8>(bitPattern: store.region.addresses.start + 3 * 4096)!
        let byte = unsafe address.pointee
        answer("read \(byte)")
      case "core":
        var limit = rlimit(rlim_cur: rlim_t.max, rlim_max: rlim_t.max)
        if unsafe setrlimit(__rlimit_resource_t(4), &limit) != 0 { return answer("no core: errno \(errno)") }
        abort()
      default: return
      }
    }
    unsafe canary.deallocate()
  }

  private static func answer(_ text: String) { Output.line(text) }
}

extension SealNeedles {
  private init(masked: [[UInt8]], mask: UInt8) {
    self.masked = masked
    self.mask = mask
  }
  var withoutLast: SealNeedles { SealNeedles(masked: masked.dropLast(), mask: mask) }
}
