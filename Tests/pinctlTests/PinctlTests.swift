import ArgumentParser
import Foundation
import Testing

@testable import pinctl

@Suite("pinctl") struct PinctlTests {
  private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appending(path: "../..")

  @Test("--version prints the one version, which the changelog has unless it is still to be released")
  func version() throws {
    let (code, output, _) = try pinctl(["--version"])
    #expect(code == 0 && String(decoding: output, as: UTF8.self) == Pinctl.version + "\n")
    let changes = try String(contentsOf: Self.root.appending(path: "CHANGELOG.md"), encoding: .utf8)
    let parts = Pinctl.version.split(separator: "-", maxSplits: 1)
    #expect(changes.contains("\n## [\(parts[0])]") == (parts.count == 1), "\(Pinctl.version)")
  }

  /// What the shell offers behind `words`, of which the last is begun.
  private func complete(_ words: [String], in directory: URL) throws -> [String] {
    let script = """
      set -e
      export PATH="$1:$PATH"
      shift
      source <(pinctl --generate-completion-script bash)
      COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
      set +e
      _pinctl pinctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
      printf '%s\\n' "${COMPREPLY[@]}"
      """
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/bash")
    process.arguments = ["-c", script, "bash", try pinctlExecutable().deletingLastPathComponent().path, "pinctl"] + words
    process.currentDirectoryURL = directory
    let output = Pipe()
    process.standardOutput = output
    try process.run()
    let offered = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return String(decoding: offered, as: UTF8.self).split(separator: "\n").map(String.init)
  }

  @Test("bash completes subcommands, demos, topics, mechanisms, processes and files") func completesInBash() throws {
    let directory = FileManager.default.temporaryDirectory.appending(path: "pinctl-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: directory) }
    try Data().write(to: directory.appending(path: "full.img"))
    for (words, offered) in [
      (["do"], ["doctor"]), (["demo", "sn"], ["snapshot"]), (["bench", "sea"], ["seal"]),
      (["bench", "track", "noti"], ["notify"]),
      (["demo", "track", "--mechanism", "in"], ["inPlace"]), (["inspect", "\(getpid())"], ["\(getpid())"]),
      (["image", "verify", "fu"], ["full.img"]), (["image", "restore", "--to", "fu"], ["full.img"]),
    ] { #expect(try complete(words, in: directory) == offered, "\(words)") }
    let demos = try complete(["demo", ""], in: directory)
    #expect(demos.contains("beside") && !demos.contains("file-writer"))
  }

  @Test("What is made for zsh and fish offers topics, mechanisms and processes", arguments: ["zsh", "fish"])
  func writesForOthers(_ shell: String) throws {
    let (code, output, _) = try pinctl(["--generate-completion-script", shell])
    let script = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    for word in ["vring", "inPlace", "ls /proc"] { #expect(script.contains(word), "\(word)") }
    #expect(!script.contains("file-writer"))
  }

  @Test("zsh reads what is made for it", .enabled(if: programPath("zsh") != nil, "there is no zsh"))
  func isReadByZsh() throws { try expectRead(by: "zsh") }

  @Test("fish reads what is made for it", .enabled(if: programPath("fish") != nil, "there is no fish"))
  func isReadByFish() throws { try expectRead(by: "fish") }

  private func expectRead(by shell: String) throws {
    let program = try #require(programPath(shell))
    let (_, output, _) = try pinctl(["--generate-completion-script", shell])
    let file = FileManager.default.temporaryDirectory.appending(path: "pinctl-\(UUID().uuidString)")
    try output.write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    let process = try Process.run(program, arguments: ["-n", file.path])
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
  }
}
