// swift-tools-version: 6.0
// Stand-ins for what the Swift kits use of Apple's modules and of others', so that they compile and run on Linux.
import PackageDescription

let modules = ["CoreML", "CryptoKit", "os", "Tokenizers", "GenAI"]
let package = Package(
    name: "swift",
    products: modules.map { .library(name: $0, targets: [$0]) },
    targets: modules.map { .target(name: $0) }
)
