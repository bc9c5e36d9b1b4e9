import FuzzTargets
import Glibc

// `fuzz TARGET seeds FOLDER` writes the inputs to start from; `fuzz TARGET` and libFuzzer's own arguments runs it.

@_silgen_name("LLVMFuzzerRunDriver") private func runDriver(
  _ count: UnsafeMutablePointer<CInt>,
  _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
  _ body: @convention(c) (UnsafePointer<UInt8>?, Int) -> CInt
) -> CInt

guard let target = CommandLine.arguments.dropFirst().first.flatMap(FuzzTarget.init(rawValue:)) else {
  fatalError(
    "usage: fuzz \(FuzzTarget.allCases.map(\.rawValue).joined(separator: "|")) [seeds FOLDER | libFuzzer's arguments]")
}
private let chosen = target

if CommandLine.arguments.count == 4, CommandLine.arguments[2] == "seeds" {
  for (index, seed) in try target.seeds().enumerated() {
    let file = unsafe open("\(CommandLine.arguments[3])/seed-\(index)", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    precondition(unsafe seed.withUnsafeBytes { unsafe write(file, $0.baseAddress, $0.count) } == seed.count)
    close(file)
  }
  exit(0)
}

var arguments: [UnsafeMutablePointer<CChar>?] =
  unsafe [strdup(CommandLine.arguments[0])] + CommandLine.arguments.dropFirst(2).map { unsafe strdup($0) } + [nil]
var count = CInt(CommandLine.arguments.count - 1)
exit(
  unsafe arguments.withUnsafeMutableBufferPointer { arguments in
    var start = arguments.baseAddress!
    return unsafe runDriver(&count, &start) { bytes, count in
      let input = unsafe Array(UnsafeBufferPointer(start: bytes, count: count))
      do {
        if let flaw = try chosen.run(input) { fatalError(flaw) }
      } catch { fatalError("not the target's: \(error)") }
      return 0
    }
  })
