import Foundation
import PinKit

/// Lets memfds have transparent huge pages, as the kernel forbids by default, while `body` runs; puts the setting back.
///
/// - Throws: ``BenchSkip`` where that needs a right that the process does not have.
func withHugeSharedMemory<Result>(_ body: () throws -> Result) throws -> Result {
  let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
  guard let text = try? String(contentsOfFile: path, encoding: .utf8), let open = text.firstIndex(of: "["),
    let close = text.firstIndex(of: "]")
  else { throw BenchSkip(description: "\(path) cannot be read.") }
  let setting = String(text[text.index(after: open)..<close])
  guard setting == "never" || setting == "deny" else { return try body() }
  func set(_ value: String) throws {
    guard let file = FileHandle(forWritingAtPath: path) else {
      throw BenchSkip(description: "\(path) is \"\(setting)\", and only root may set it to \"advise\".")
    }
    try file.write(contentsOf: Data(value.utf8))
    try file.close()
  }
  try set("advise")
  defer { try? set(setting) }
  return try body()
}
