import CoreML
import Foundation

/// The package's functions `prefill` and `decode`, and the state that they share. One call at a time.
final class CoreMLModel: Engine {
    private let functions: [String: MLModel]
    private var state: MLState
    private var sampler: Sampler

    private init(functions: [String: MLModel], sampler: Sampler) {
        self.functions = functions
        self.sampler = sampler
        state = functions["prefill"]!.makeState()
    }

    /// Compiles the package the first time, which takes a while, and keeps the result in the app's caches.
    static func load(package: URL, units: MLComputeUnits, sampler: Sampler) async throws -> sending CoreMLModel {
        let compiled = try await compile(package)
        var functions: [String: MLModel] = [:]
        for name in ["prefill", "decode"] {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units
            configuration.functionName = name
            functions[name] = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        }
        return CoreMLModel(functions: functions, sampler: sampler)
    }

    /// Throws `CancellationError` where the task was cancelled between two calls.
    func run(_ calls: [Call], tokens: [Int]) throws -> Int? {
        var logits: [Float] = []
        for call in calls {
            try Task.checkCancellation()
            if call.start == 0 { state = functions["prefill"]!.makeState() }
            logits = try run(call, tokens: tokens, rules: ModelInfo.rules)
        }
        return sampler.choose(logits)
    }

    /// Appends the tokens of a call; the logits that follow the last one.
    private func run(_ call: Call, tokens: [Int], rules: Rules) throws -> [Float] {
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
        let output = try model.prediction(from: features, using: state)
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
