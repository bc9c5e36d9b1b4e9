// swift-tools-version: 6.2
import PackageDescription

let package = Package(
  name: "track-writes",
  dependencies: [.package(name: "PinKit", path: "../..")],
  targets: [
    .executableTarget(name: "track-writes", dependencies: [.product(name: "PinKit", package: "PinKit")])
  ]
)
