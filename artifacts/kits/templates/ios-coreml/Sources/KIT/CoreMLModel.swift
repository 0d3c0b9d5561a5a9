import CoreML
import Foundation

/// The package's functions `prefill` and `decode`, and the state that they share.
final class CoreMLModel {
    private let functions: [String: MLModel]
    private var state: MLState

    /// Compiles the package the first time, which takes a while, and keeps the result in the app's caches.
    init(package: URL, units: MLComputeUnits) async throws {
        let compiled = try await Self.compile(package)
        var functions: [String: MLModel] = [:]
        for name in ["prefill", "decode"] {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units
            configuration.functionName = name
            functions[name] = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        }
        self.functions = functions
        state = functions["prefill"]!.makeState()
    }

    /// Empties the cache.
    func reset() {
        state = functions["prefill"]!.makeState()
    }

    /// Appends the tokens of a call; the logits that follow the last one.
    func run(_ call: Call, tokens: [Int], rules: Rules) async throws -> [Float] {
        let model = functions[call.function]!
        let size = call.function == "prefill" ? rules.chunk : 1
        var ids = tokens[call.start ..< call.start + call.count].map(Int32.init)
        ids += Array(repeating: 0, count: size - call.count)
        let values: [String: MLShapedArray<Int32>] = [
            "inputIds": MLShapedArray(scalars: ids, shape: [1, size]),
            "position": MLShapedArray(scalars: [Int32(call.start)], shape: [1]),
            "length": MLShapedArray(scalars: [Int32(call.count)], shape: [1]),
            "total": MLShapedArray(scalars: [Int32(tokens.count)], shape: [1]),
        ]
        let declared = model.modelDescription.inputDescriptionsByName
        let inputs = values.filter { declared[$0.key] != nil }.mapValues { MLMultiArray($0) }
        let features = try MLDictionaryFeatureProvider(dictionary: inputs)
        let output = try await model.prediction(from: features, using: state)
        guard let logits = output.featureValue(for: "logits")?.multiArrayValue else {
            throw DamagedBundle("the package gives no logits")
        }
        return MLShapedArray<Float>(converting: logits).scalars
    }

    private static func compile(_ package: URL) async throws -> URL {
        let caches = try FileManager.default.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let kept = caches.appending(path: "pocketphi-\(ModelInfo.manifestSHA256.prefix(16)).mlmodelc")
        if !FileManager.default.fileExists(atPath: kept.path(percentEncoded: false)) {
            let compiled = try await MLModel.compileModel(at: package)
            try FileManager.default.moveItem(at: compiled, to: kept)
        }
        return kept
    }
}
