import FuzzTargets
import Foundation
import Testing

@testable import PinKit

/// What coverage-guided fuzzing has found worth keeping (`make fuzz`), and changes of it.
@Suite("What reads bytes from outside") struct FuzzCorpusTests {
  private static let folder = URL(filePath: #filePath).deletingLastPathComponent().appending(
    path: "../../FuzzTargets/Corpus")

  private static func corpus(_ target: FuzzTarget) throws -> [(name: String, bytes: [UInt8])] {
    let here = folder.appending(path: target.rawValue)
    return try FileManager.default.contentsOfDirectory(atPath: here.path).sorted().map { name in
      (name, Array(try Data(contentsOf: here.appending(path: name))))
    }
  }

  @Test("Every input of the corpus ends in a value or a typed error", arguments: FuzzTarget.allCases)
  func replay(_ target: FuzzTarget) throws {
    let inputs = try Self.corpus(target)
    try #require(inputs.count >= (try target.seeds().count))
    for input in inputs {
      Tally.add(.checks)
      #expect(try target.run(input.bytes) == nil, "\(input.name)")
    }
  }

  @Test("So does every change of one", arguments: FuzzTarget.allCases)
  func changed(_ target: FuzzTarget) throws {
    let inputs = try Self.corpus(target)
    var random = SeededRandom(seed: Seed.base)
    for round in 0..<1000 {
      guard var bytes = inputs.randomElement(using: &random)?.bytes, !bytes.isEmpty else { continue }
      // Most of an image is its pages, of which one byte is like another.
      let most = min(bytes.count, 600)
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        let place = Int.random(in: 0..<most, using: &random)
        switch Int.random(in: 0..<5, using: &random) {
        case 0: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        case 1: bytes[place] = [0, 1, 0x7f, 0x80, 0xff, 0x30, 0x39, 0x2c, 0x2d].randomElement(using: &random) ?? 0
        case 2: bytes.insert(UInt8.random(in: .min ... .max, using: &random), at: place)
        case 3: bytes.removeSubrange(place..<min(bytes.count, place + 8))
        default: bytes.insert(contentsOf: bytes[place..<min(bytes.count, place + 16)], at: place)
        }
        if bytes.count < most { break }
      }
      Tally.add(.checks)
      let flaw = try target.run(bytes)
      #expect(flaw == nil, "round \(round), seed \(Seed.base)")
    }
  }
}
