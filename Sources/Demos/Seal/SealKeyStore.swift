internal import Foundation
internal import Glibc
internal import PinKit
internal import PinKitCrypto

/// Keys in a region, a page for each. The first page is a buffer for requests, and never sealed: what lies behind it are keys.
final class SealKeyStore {
  let space: AddressSpace
  let region: Region
  let needles: SealNeedles
  var byteCount: Int { region.pageCount * region.pageSize }
  var pages: Range<Int> { 1..<region.pageCount }

  init(_ needles: SealNeedles, _ options: SealingOptions) throws {
    space = try DemoSpace.make()
    region = try space.map(.pool, pages: needles.masked.count + 1)
    self.needles = needles
    try region.setSealer(AESGCMSealer(), options)
    try region.store(UInt64(1), toByteOffset: 0)
    for page in pages { try fill(page) }
  }

  /// Byte by byte: a vector register that had a key would tell.
  private func fill(_ page: Int) throws {
    for (index, byte) in needles.masked[page - 1].enumerated() {
      try region.store(byte ^ needles.mask, toByteOffset: page * region.pageSize + index)
    }
  }

  /// Whether the page has its key; opens it where touching may.
  func isWhole(_ page: Int) throws -> Bool {
    for (index, byte) in needles.masked[page - 1].enumerated() {
      let found: UInt8 = try region.load(fromByteOffset: page * region.pageSize + index)
      if found ^ needles.mask != byte { return false }
    }
    return true
  }

  /// Those that are sealed now.
  var sealed: [Bool] { get throws { try pages.map { try region.isSealed($0) } } }

  /// The pool's memory as its file has it: what an attacker who writes to memory would change.
  func withFile<Result>(_ body: (CInt) throws -> Result) throws -> Result {
    let own = try ProcessMaps.mappings(in: region.addresses).first?.inode
    for name in try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd") {
      var status = stat()
      guard let descriptor = CInt(name), unsafe fstat(descriptor, &status) == 0, UInt64(status.st_ino) == own else {
        continue
      }
      return try body(descriptor)
    }
    throw POSIXError(.ENOENT)
  }

  /// The bytes of the page's frame, whatever they are.
  func rawBytes(_ page: Int) throws -> [UInt8] {
    let offset = off_t(try region.frameState(page).frame.number * region.pageSize)
    return try withFile { descriptor in
      var bytes = [UInt8](repeating: 0, count: 4096)
      guard unsafe pread(descriptor, &bytes, bytes.count, offset) == bytes.count else { throw POSIXError(.EIO) }
      return bytes
    }
  }

  func tamper(_ page: Int) throws {
    let offset = off_t(try region.frameState(page).frame.number * region.pageSize + 1000)
    var byte = try rawBytes(page)[1000] ^ 1
    try withFile { descriptor in
      guard unsafe pwrite(descriptor, &byte, 1, offset) == 1 else { throw POSIXError(.EIO) }
    }
  }
}
