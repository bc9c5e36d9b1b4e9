internal import PinKit

/// A key store whose keys exist in plain only while they are used.
package struct SealDemo: SceneDemo {
  package let name = "seal"
  package let summary = "keys that are nowhere in memory until one of them is used"

  private let keys: Int

  package init(keys: Int = 24) { self.keys = keys }

  var introduction: String {
    "A store has \(keys) keys, each in a page of its own. Sealed pages hold ciphertext, in the place where they always are; touching one is "
      + "an error here, and whoever needs a key opens its page by name. The demo looks for keys with masked needles, so as not to find itself."
  }

  var scenes: [any DemoScene] {
    [
      SealOverreadScene(keys: keys), SealUseScene(keys: keys), SealPendingScene(), SealReaderScene(keys: keys),
      SealTamperScene(),
    ]
  }
}
