internal import PinKit

/// Writing to a file's pages through pins: the accident that the kernel's developers found in 2018, and the rules that prevent it.
package struct GupDemo: SceneDemo {
  package let name = "gup"
  package let summary = "a device writes a file's pages through a pin, without the rules and with them"

  let introduction =
    "A pin (the kernel says GUP, get user pages) lets a device write memory by itself. If the memory is a file's, somebody has to know: "
    + "a page that is not known to be dirty is not written back. A write through the page table is noticed by its fault. One "
    + "through a pin is not."

  package init() {}

  var scenes: [any DemoScene] { [GupAccidentScene(), GupStableScene(), GupVerdictScene()] }
}
