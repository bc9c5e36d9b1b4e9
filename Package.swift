// swift-tools-version: 6.2
import PackageDescription

/// Every Swift target of ours is held to the same rules.
let house: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableExperimentalFeature("Lifetimes"),
]

let package = Package(
  name: "PinKit",
  products: [
    .library(name: "PinKit", targets: ["PinKit"]),
    .library(name: "PinKitCrypto", targets: ["PinKitCrypto"]),
    .library(name: "PinKitPrometheus", targets: ["PinKitPrometheus"]),
    .library(name: "Virtqueue", targets: ["Virtqueue"]),
    .executable(name: "pinctl", targets: ["pinctl"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-system", from: "1.6.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.6.0"),
    .package(url: "https://github.com/apple/swift-metrics", from: "2.5.0"),
    .package(url: "https://github.com/apple/swift-crypto", from: "4.5.0"),
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
    .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
    .package(url: "https://github.com/swiftlang/swift-docc-plugin", from: "1.4.0"),
  ],
  targets: [
    .target(
      name: "CUffd",
      cSettings: [.define("_GNU_SOURCE")],
      linkerSettings: [.linkedLibrary("uring")]
    ),
    .target(
      name: "PinKit",
      dependencies: [
        "CUffd",
        .product(name: "SystemPackage", package: "swift-system"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "Metrics", package: "swift-metrics"),
        .product(name: "Histogram", package: "hdrhistogram-swift"),
      ],
      swiftSettings: house
    ),
    .target(name: "Virtqueue", dependencies: ["PinKit"], swiftSettings: house),
    .target(
      name: "CSealing",
      dependencies: [.product(name: "Crypto", package: "swift-crypto")],
      cSettings: [.define("_GNU_SOURCE")]
    ),
    .target(name: "PinKitCrypto", dependencies: ["PinKit", "CSealing"], swiftSettings: house),
    .target(
      name: "PinKitPrometheus",
      dependencies: [
        .product(name: "CoreMetrics", package: "swift-metrics"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: house
    ),
    .executableTarget(
      name: "pinctl",
      dependencies: [
        "PinKit", "Demos", "Reports", "Terminal", "Topics",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ],
      swiftSettings: house
    ),
    .target(name: "Terminal", swiftSettings: house),
    .target(name: "Reports", dependencies: ["PinKit", "Terminal"], swiftSettings: house),
    .target(
      name: "Demos",
      dependencies: [
        "PinKit", "PinKitCrypto", "Virtqueue", "Terminal", "CFloor", "CDevices", "Guest",
        .product(name: "Histogram", package: "hdrhistogram-swift"),
        .product(name: "Logging", package: "swift-log"),
      ],
      swiftSettings: house
    ),
    .target(
      name: "CFloor",
      path: "Benchmarks/CFloor",
      cSettings: [.define("_GNU_SOURCE")],
      linkerSettings: [.linkedLibrary("uring")]
    ),
    .target(
      name: "Topics",
      dependencies: [
        "PinKit", "PinKitCrypto", "Virtqueue", "CFloor",
      ],
      path: "Benchmarks/Topics",
      swiftSettings: house
    ),
    .target(name: "CKvm"),
    .target(name: "CDevices", cSettings: [.define("_GNU_SOURCE")]),
    .target(
      name: "Guest",
      dependencies: ["PinKit", "CKvm", .product(name: "SystemPackage", package: "swift-system")],
      swiftSettings: house
    ),
    .target(
      name: "CTestSupport",
      path: "Tests/CTestSupport",
      cSettings: [.define("_GNU_SOURCE")]
    ),
    .executableTarget(
      name: "hotpaths", dependencies: ["PinKit", "CTestSupport"], path: "Tests/HotPaths", swiftSettings: house),
    .target(
      name: "FuzzTargets",
      dependencies: ["PinKit", "Virtqueue", "CUffd", .product(name: "Logging", package: "swift-log")],
      path: "Tests/FuzzTargets",
      exclude: ["Corpus"],
      swiftSettings: house
    ),
    .testTarget(
      name: "PinKitTests",
      dependencies: [
        "PinKit", "PinKitCrypto", "PinKitPrometheus", "Virtqueue", "CSealing", "CTestSupport", "CDevices", "FuzzTargets",
        "Guest",
        .product(name: "MetricsTestKit", package: "swift-metrics"),
        .product(name: "CoreMetrics", package: "swift-metrics"),
        .product(name: "Crypto", package: "swift-crypto"),
        .product(name: "SystemPackage", package: "swift-system"),
        .product(name: "Logging", package: "swift-log"),
      ],
      exclude: ["Images/Released"],
      swiftSettings: house
    ),
    .testTarget(
      name: "pinctlTests",
      dependencies: ["pinctl", "Demos", "Reports", "Terminal", "CFloor", "CTestSupport", "Guest", "Virtqueue"],
      swiftSettings: house),
  ]
)

// Links with libFuzzer, which only `make fuzz` asks for.
if Context.environment["PINKIT_FUZZ"] != nil {
  package.targets.append(
    .executableTarget(name: "fuzz", dependencies: ["FuzzTargets"], path: "Tests/Fuzzer", swiftSettings: house))
}
