internal import PinKit

/// Who is told before a page changes, in which order, and what that lets them do.
package struct NotifyDemo: SceneDemo {
  package let name = "notify"
  package let summary = "who is told before pages change, and what a secondary MMU makes of it"

  /// By each mechanism, in the first scene.
  private let breaks: Int

  package init(breaks: Int = 40) { self.breaks = breaks }

  let introduction =
    "A device emulator keeps translations from pages to frames of its own. A page that it has translated stays movable, as nothing is "
    + "pinned: instead the emulator is told before the page changes, and gives its translation up."

  var scenes: [any DemoScene] { [NotifyBreakScene(breaks: breaks), NotifyWindowScene(), NotifyRemovalScene()] }
}
