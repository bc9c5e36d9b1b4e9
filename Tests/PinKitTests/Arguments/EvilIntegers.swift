import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// Integers that arithmetic goes wrong with: the ends of the type, what a multiplication by a page's size carries over them, and the
/// neighbours of a region's own bounds.
struct EvilIntegers {
  let numbers: [Int]
  let addresses: [UInt]

  /// - Parameters:
  ///   - count: Of pages, or whatever else the calls count.
  ///   - memory: Mapped, and nobody's.
  init(count: Int, memory: AddressRange) {
    let bounds = [count - 1, count, count + 1, count * 4096 - 1, count * 4096, count * 4096 + 1]
    let near = [Int.min, Int.min + 1, -(1 << 32), -4097, -4096, -1, 0, 1, 7] + bounds
    let far = [1 << 31, 1 << 32, 1 << 46, 1 << 51, 1 << 52, Int.max / 4096 + 1, Int.max - 4095, Int.max - 1, Int.max]
    numbers = (near + far).sorted()
    addresses = [
      0, 1, 4095, 4096, memory.start - 1, memory.start, memory.start + 4096, memory.end - 1, memory.end, 1 << 47, 1 << 56,
      1 << 63 - 1, 1 << 63, 1 << 63 + 4096, .max - 4095, .max - 1, .max,
    ].sorted()
  }

  var ranges: [Range<Int>] { numbers.flatMap { low in numbers.filter { $0 >= low }.map { low..<$0 } } }

  var addressRanges: [AddressRange] {
    addresses.flatMap { low in addresses.filter { $0 >= low }.map { AddressRange(start: low, end: $0) } }
  }
}

/// What a public call does with an evil argument: it may throw a `PinError`, and nothing else may come of it.
struct ArgumentCall {
  enum Body {
    case number((Int) throws -> Void)
    case range((Range<Int>) throws -> Void)
    case address((UInt) throws -> Void)
    case addresses((AddressRange) throws -> Void)
  }
  let name: String
  let body: Body

  init(_ name: String, number body: @escaping (Int) throws -> Void) {
    self.name = name
    self.body = .number(body)
  }
  init(_ name: String, range body: @escaping (Range<Int>) throws -> Void) {
    self.name = name
    self.body = .range(body)
  }
  init(_ name: String, address body: @escaping (UInt) throws -> Void) {
    self.name = name
    self.body = .address(body)
  }
  init(_ name: String, addresses body: @escaping (AddressRange) throws -> Void) {
    self.name = name
    self.body = .addresses(body)
  }

  /// Says what comes before it is done, so that a trap leaves its name behind.
  func run(_ evil: EvilIntegers) {
    switch body {
    case .number(let body): for value in evil.numbers { attempt("\(value)") { try body(value) } }
    case .range(let body): for value in evil.ranges { attempt("\(value)") { try body(value) } }
    case .address(let body): for value in evil.addresses { attempt("\(value)") { try body(value) } }
    case .addresses(let body): for value in evil.addressRanges { attempt("\(value)") { try body(value) } }
    }
  }

  private func attempt(_ argument: String, _ body: () throws -> Void) {
    LastCall.note("\(name)(\(argument))")
    do { try body() } catch let error as PinError {
      check(!error.operation.isEmpty, "\(name)(\(argument)): an error without a name, \(error)")
    } catch {
      if !(error is any ForeignError) { check(false, "\(name)(\(argument)): \(error)") }
    }
  }
}

/// Where a process says which call it is about to make, for whoever finds it dead.
struct LastCall {
  let path: String

  init() {
    path = "/tmp/pinkit-last-call-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  }

  /// Says what was noted last if that was the end of it.
  func close(_ isDead: Bool) {
    if isDead, let text = try? ProcessMaps.readFile(path) { print("the last call was \(text.prefix { $0 != "\n" })") }
    unsafe unlink(path)
  }

  nonisolated(unsafe) private static var descriptor: CInt = -1

  static func open(_ path: String) {
    unsafe descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
  }

  static func note(_ text: String) {
    let line = Array((text + "\n").utf8)
    _ = unsafe pwrite(descriptor, line, line.count, 0)
  }
}

/// Errors that are not PinKit's own, and as good: a virtqueue has its own.
protocol ForeignError {}
