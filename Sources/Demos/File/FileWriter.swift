internal import Glibc
internal import PinKit

/// What the last scene of the demo kills.
package enum FileWriter {
  /// Once all pages of a round were flushed its number, in 8 bytes, on the standard output.
  package static func run(_ path: String) throws {
    let store = try FileStore(path: path)
    let space = try DemoSpace.make()
    let region = try space.map(.file(store), pages: store.geometry.pageCount)
    var round = try FileContent.rounds(of: region).compactMap { $0 }.max() ?? 0
    while true {
      round += 1
      // In two parts, in no order: what is written back are runs, holes and single pages.
      let order = (0..<region.pageCount).shuffled()
      let middle = Int.random(in: 1..<order.count)
      for part in [order[..<middle], order[middle...]] {
        for page in part { try FileContent.write(round, page, to: region) }
        try region.flush()
      }
      var number = UInt64(round)
      guard unsafe write(STDOUT_FILENO, &number, 8) == 8 else { return }
    }
  }
}
