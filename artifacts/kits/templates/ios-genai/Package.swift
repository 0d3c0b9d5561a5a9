// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "«name»",
    platforms: [.iOS("16.4")],
    products: [.library(name: "«name»", targets: ["«name»"])],
    targets: [
        // not on CocoaPods: from the packages of the same release on NuGet, see the README
        .binaryTarget(name: "onnxruntime-genai", path: "Frameworks/onnxruntime-genai.xcframework"),
        .binaryTarget(name: "onnxruntime", path: "Frameworks/onnxruntime.xcframework"),
        .target(name: "CGenAI", dependencies: ["onnxruntime-genai"]),
        .target(
            name: "«name»",
            dependencies: ["CGenAI", "onnxruntime"],
            linkerSettings: [
                .linkedLibrary("c++"), .linkedFramework("CoreML"), .linkedFramework("CoreGraphics"), .linkedFramework("ImageIO"),
            ]
        ),
        .testTarget(name: "«name»Tests", dependencies: ["«name»"], resources: [.copy("vectors.json")]),
    ]
)
