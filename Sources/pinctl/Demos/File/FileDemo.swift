internal import PinKit

/// A region over a file: filled when it is touched, written back when it is asked for.
struct FileDemo: SceneDemo {
  let name = "file"
  let summary = "memory over a file: filled, written back, dropped, and killed in between"

  /// How often a process that writes and flushes is killed.
  var kills = 12

  let introduction =
    "The kernel's own page cache maps files; PinKit does it for any store that can read and write pages, and keeps the same rules: who "
    + "is asked before a page is written, who is told before it is cleaned, and what is still there after a failure."

  var scenes: [any DemoScene] {
    [
      FileFillScene(), FileOrderScene(), FileFailureScene(), FileSpaceScene(), FileReclaimScene(),
      FileKillScene(kills: kills),
    ]
  }
}
