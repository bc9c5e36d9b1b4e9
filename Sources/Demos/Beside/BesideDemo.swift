/// Managed memory beside code that has never heard of it.
package struct BesideDemo: SceneDemo {
  package let name = "beside"
  package let summary = "nothing lost beside code that has never heard of PinKit"

  let introduction =
    "A daemon is more than PinKit: it links libraries that close descriptors, it jails and locks itself, an operator stops it, the kernel "
    + "moves its pages, drivers take them. Each scene is a process of its own that does one of these to itself. A process that dies, "
    + "or has not ended after two minutes, is a claim that does not hold."

  package init() {}

  static let all: [any BesideScene] = [
    BesideCompactionScene(), BesideDescriptorScene(), BesideStopScene(), BesideJailScene(), BesideLockScene(),
    BesideGuardScene(), BesideDriverScene(), BesideFlightScene(),
  ]

  var scenes: [any DemoScene] { Self.all }

  package static var sceneNames: [String] { all.map(\.name) }

  /// Plays one scene in this process, which is a child of the one that shows the demo.
  package static func playInChild(_ name: String) throws { try all.first { $0.name == name }?.playInChild() }
}
