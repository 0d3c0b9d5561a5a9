// swift-tools-version: 6.0
// Stand-ins for what the Swift kits use of Apple's modules and of others', so that they compile and run on Linux.
import PackageDescription

let fast: [SwiftSetting] = [.unsafeFlags(["-O"])] // hashes whole bundles
let package = Package(
    name: "swift",
    products: ["CoreML", "CryptoKit", "os", "Tokenizers", "SwiftUI"].map { .library(name: $0, targets: [$0]) } + [
        .library(name: "GenAI", type: .dynamic, targets: ["GenAI"]), // so that the real one can be loaded before it
    ],
    targets: [
        .target(name: "Peer"),
        .target(name: "CoreML", dependencies: ["Peer"]),
        .target(name: "Tokenizers", dependencies: ["Peer"]),
        .target(name: "CryptoKit", swiftSettings: fast),
        .target(name: "os"),
        .target(name: "SwiftUI"),
        .target(name: "GenAI"),
    ]
)
