internal import PinKit

/// A region over a file: filled when it is touched, written back when it is asked for.
package struct FileDemo: SceneDemo {
  package let name = "file"
  package let summary = "memory over a file: filled, written back, dropped, and killed in between"

  /// How often a process that writes and flushes is killed.
  private let kills: Int

  package init(kills: Int = 12) { self.kills = kills }

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
