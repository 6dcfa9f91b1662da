// swift-tools-version: 6.0
// Never built by the authors of mirror-edge, who have no Mac: see docs/apple.md.

import PackageDescription

let package = Package(
    name: "MirrorEdge",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [.library(name: "MirrorEdge", targets: ["MirrorEdge"])],
    targets: [.target(name: "MirrorEdge", swiftSettings: [.swiftLanguageMode(.v5)])]
)
