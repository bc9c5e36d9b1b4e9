internal import CUffd
internal import Glibc
internal import Logging
internal import PinKit
internal import Synchronization
internal import Virtqueue

/// An input is up to three images, with `separator` between header and data and between images. The first byte says what is repaired before
/// they are read, so that changed inputs get behind the checks that they would all fail.
enum ImageTarget {
  private static let separator: [UInt8] = [0, 255, 0]
  /// Of the first byte: each header gets the checksum of its first line; each data file gets the size that its header wants.
  private static let (seals, sizes): (UInt8, UInt8) = (1, 2)
  private static let directory: String = {
    let path = "/dev/shm/pinkit-fuzz-\(getpid())"
    _ = unsafe mkdir(path, 0o700)
    atexit { ImageTarget.remove() }
    return path
  }()
  /// Of a data file, in bytes: what is larger is not made.
  private static let largest = 1 << 20
  private static let lock = Mutex<Void>(())

  private static func remove() {
    for index in 0..<3 {
      for suffix in ["", ".pinkit"] { _ = unsafe unlink("\(directory)/\(index)\(suffix)") }
    }
    _ = unsafe rmdir(directory)
  }

  static func run(_ input: [UInt8]) throws -> String? {
    try lock.withLock { _ in try judge(input) }
  }

  private static func judge(_ input: [UInt8]) throws -> String? {
    guard let repairs = input.first else { return nil }
    let parts = split(Array(input.dropFirst()))
    var chain: [SnapshotImage] = []
    var data: [[UInt8]] = []
    for index in 0..<min(3, (parts.count + 1) / 2) {
      let path = "\(directory)/\(index)"
      let line = parts[2 * index]
      var body = 2 * index + 1 < parts.count ? Array(parts[2 * index + 1].prefix(largest)) : []
      write(repairs & seals != 0 ? sealed(line) : line, to: path + ".pinkit")
      write(body, to: path)
      if repairs & sizes != 0, let wanted = size(line), wanted <= largest {
        _ = unsafe truncate(path, wanted)
        body = Array(body.prefix(wanted)) + [UInt8](repeating: 0, count: max(0, wanted - body.count))
      }
      do throws(PinError) {
        let image = try SnapshotImage(path: path)
        if let flaw = flaw(image) { return flaw }
        try image.verify()
        chain.append(image)
        data.append(body)
      } catch {
        // Refused: nothing more to see of this chain.
        return nil
      }
    }
    guard let last = chain.last, last.pageSize == 4096, last.pageCount <= 64 else { return nil }
    return try restore(chain, data)
  }

  /// What a header that was accepted cannot be.
  private static func flaw(_ image: SnapshotImage) -> String? {
    let runs = image.storedPages.runs
    for (index, run) in runs.enumerated() {
      if run.isEmpty || run.lowerBound < 0 || run.upperBound > image.pageCount {
        return "run \(run) of \(image.pageCount) pages"
      }
      if index > 0, run.lowerBound <= runs[index - 1].upperBound { return "runs \(runs[index - 1]) and \(run)" }
    }
    if image.byteCount != image.pageCount * image.pageSize { return "\(image.byteCount) bytes" }
    if image.parent == image.identity { return "its own parent" }
    return nil
  }

  /// The region has what the files have, or what it had before.
  private static func restore(_ chain: [SnapshotImage], _ data: [[UInt8]]) throws -> String? {
    let pageCount = chain[0].pageCount
    guard pageCount <= 64, chain[0].pageSize == 4096 else { return nil }
    let space = try AddressSpace()
    defer { try? space.close() }
    let region = try space.map(.anonymous, pages: pageCount)
    let before = [UInt8](repeating: 0x5a, count: region.byteCount)
    try unsafe region.withUnsafeMutableBytes { unsafe $0.copyBytes(from: before) }
    var expected = before
    do throws(PinError) {
      try region.restore(from: chain)
      for (image, bytes) in zip(chain, data) {
        for page in image.storedPages.pages {
          for offset in page * 4096..<(page + 1) * 4096 { expected[offset] = offset < bytes.count ? bytes[offset] : 0 }
        }
      }
    } catch {
      if error.advice.contains("A part of the region") { return "half restored: \(error)" }
    }
    let found = try unsafe region.withUnsafeMutableBytes { unsafe Array($0) }
    return found == expected ? nil : "the region has other bytes than the images, or than before"
  }

  static func seeds() throws -> [[UInt8]] {
    var configuration = AddressSpace.Configuration()
    configuration.logger.logLevel = .error
    let space = try AddressSpace(configuration: configuration)
    defer { try? space.close() }
    let region = try space.map(.pool, pages: 2)
    _ = directory
    var inputs: [[UInt8]] = []
    var whole: [UInt8] = []
    var before: Snapshot?
    for index in 0..<3 {
      try region.store(UInt64(index + 1), toByteOffset: index % 2 * 4096)
      let snapshot = try region.snapshot()
      let path = "\(directory)/\(index)"
      remove(path)
      _ = try snapshot.write(to: path, since: before)
      let header = content(path + ".pinkit")
      if index > 0 { whole += separator }
      whole += header.prefix { $0 != UInt8(ascii: "\n") } + separator + content(path)
      inputs.append([seals | sizes] + whole)
      before = snapshot
    }
    let first = content("\(directory)/0.pinkit")
    inputs.append([0] + first + separator + content("\(directory)/0"))
    inputs.append([seals] + Array(#"{"format":"pinkit-image","version":2}"#.utf8))
    return inputs
  }

  private static func remove(_ path: String) {
    _ = unsafe unlink(path)
    _ = unsafe unlink(path + ".pinkit")
  }

  private static func split(_ bytes: [UInt8]) -> [[UInt8]] {
    var parts: [[UInt8]] = [[]]
    var at = 0
    while at < bytes.count {
      if bytes.count - at >= 3, bytes[at] == 0, bytes[at + 1] == 255, bytes[at + 2] == 0 {
        parts.append([])
        at += 3
      } else {
        parts[parts.count - 1].append(bytes[at])
        at += 1
      }
    }
    return parts
  }

  private static func sealed(_ line: [UInt8]) -> [UInt8] {
    let sum = unsafe line.withUnsafeBytes { unsafe cuffd_checksum($0.baseAddress, $0.count) }
    let digits = [sum.high, sum.low].map { number in
      let text = String(number, radix: 16)
      return String(repeating: "0", count: 16 - text.count) + text
    }
    return line + Array("\n{\"checksum\":\"\(digits.joined())\"}\n".utf8)
  }

  /// What the header says of pages and their size, read without care.
  private static func size(_ line: [UInt8]) -> Int? {
    let text = String(decoding: line, as: UTF8.self)
    func field(_ name: String) -> Int? {
      guard let at = text.firstRange(of: "\"\(name)\":") else { return nil }
      return Int(text[at.upperBound...].prefix { $0.isASCII && $0.isNumber }.prefix(9))
    }
    guard let count = field("pageCount"), let size = field("pageSize") else { return nil }
    let (bytes, isTooMuch) = count.multipliedReportingOverflow(by: size)
    return isTooMuch ? nil : bytes
  }

  private static func write(_ bytes: [UInt8], to path: String) {
    let file = unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    _ = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(file, $0.baseAddress, $0.count) }
    close(file)
  }

  private static func content(_ path: String) -> [UInt8] {
    let file = unsafe open(path, O_RDONLY | O_CLOEXEC)
    defer { close(file) }
    var bytes = [UInt8](repeating: 0, count: largest)
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe read(file, $0.baseAddress, $0.count) }
    return Array(bytes.prefix(max(0, count)))
  }
}
