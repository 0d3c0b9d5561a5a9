// swift-tools-version: «swift_tools»
import PackageDescription

let package = Package(
    name: "«name»",
    platforms: [.iOS(.v«ios»), .macOS(.v«macos»)],
    products: [.library(name: "«name»", targets: ["«name»"])],
    dependencies: [.package(url: "https://github.com/huggingface/swift-transformers", from: "1.3.0")],
    targets: [
        .target(name: "«name»", dependencies: [.product(name: "Tokenizers", package: "swift-transformers")]),
        .testTarget(name: "«name»Tests", dependencies: ["«name»"], resources: [.copy("vectors.json")]),
    ]
)
