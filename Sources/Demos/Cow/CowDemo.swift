internal import PinKit

/// When a write may reuse a frame and when it must copy: what each rule leaks or costs, and what clones make of it.
package struct CowDemo: SceneDemo {
  package let name = "cow"
  package let summary = "shared frames: who may write in place, what each rule leaks or costs, and clones"

  /// Of the last scene.
  private let clones: Int

  package init(clones: Int = 24) { self.clones = clones }

  let introduction =
    "A clone of a region shares its frames. When either side writes a page, the frame may be written in place if nobody else has "
    + "it, and must be copied if somebody has. What \"has\" means is the rule, and there are several."

  var scenes: [any DemoScene] {
    [CowLeakScene(), CowKernelScene(), CowLookupScene(), CowDeviceScene(), CowCloneScene(cloneCount: clones)]
  }
}
