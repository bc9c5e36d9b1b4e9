import Foundation
import FuzzTargets
import Glibc

// `fuzz seeds FOLDER` writes the inputs to start from; with libFuzzer's own arguments it runs it.

@_silgen_name("LLVMFuzzerRunDriver") private func runDriver(
  _ count: UnsafeMutablePointer<CInt>,
  _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
  _ body: @convention(c) (UnsafePointer<UInt8>?, Int) -> CInt
) -> CInt

private func stop(_ why: String) -> Never {
  FileHandle.standardError.write(Data("\(why)\n".utf8))
  abort()
}

// The environment names the target: libFuzzer starts the program again by itself, with arguments of its own.
guard let target = ProcessInfo.processInfo.environment["PINKIT_FUZZ_TARGET"].flatMap(FuzzTarget.init(rawValue:)) else {
  stop("PINKIT_FUZZ_TARGET is one of \(FuzzTarget.allCases.map(\.rawValue).joined(separator: ", "))")
}
private let chosen = target

if CommandLine.arguments.count == 3, CommandLine.arguments[1] == "seeds" {
  for (index, seed) in try target.seeds().enumerated() {
    let file = unsafe open("\(CommandLine.arguments[2])/seed-\(index)", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    precondition(unsafe seed.withUnsafeBytes { unsafe write(file, $0.baseAddress, $0.count) } == seed.count)
    close(file)
  }
  exit(0)
}

var arguments: [UnsafeMutablePointer<CChar>?] = unsafe CommandLine.arguments.map { unsafe strdup($0) } + [nil]
var count = CInt(CommandLine.arguments.count)
exit(
  unsafe arguments.withUnsafeMutableBufferPointer { arguments in
    var start = arguments.baseAddress!
    return unsafe runDriver(&count, &start) { bytes, count in
      let input = unsafe Array(UnsafeBufferPointer(start: bytes, count: count))
      // libFuzzer keeps the input of a process that aborts.
      do {
        guard let flaw = try chosen.run(input) else { return 0 }
        stop(flaw)
      } catch { stop("an error that is not the target's: \(error)") }
    }
  })
