// What the kit uses of CoreML, from developer.apple.com/documentation/coreml. Nothing is Sendable here that need not be. The model
// is the toy of `conversation_vectors.py`: it takes tokens as the package's functions do, and refuses what Core ML would spoil.
import Foundation

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public var functionName: String?

    public init() {}
}

public class MLState {
    var tokens: [Int32] = []
}

public class MLFeatureDescription {}

public class MLModelDescription {
    public let inputDescriptionsByName: [String: MLFeatureDescription]

    init(_ names: [String]) {
        inputDescriptionsByName = Dictionary(uniqueKeysWithValues: names.map { ($0, MLFeatureDescription()) })
    }
}

public class MLMultiArray {
    let values: [Double]

    init(values: [Double]) {
        self.values = values
    }

    public convenience init(_ array: MLShapedArray<Int32>) {
        self.init(values: array.scalars.map(Double.init))
    }
}

public protocol MLShapedArrayScalar { init(_: Double) }
extension Int32: MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}

public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public let scalars: [Scalar]

    public init(scalars: [Scalar], shape: [Int]) {
        precondition(scalars.count == shape.reduce(1, *))
        self.scalars = scalars
    }

    public init(converting array: MLMultiArray) {
        scalars = array.values.map { Scalar($0) }
    }
}

public class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?

    init(_ array: MLMultiArray) {
        multiArrayValue = array
    }
}

public protocol MLFeatureProvider {
    func featureValue(for name: String) -> MLFeatureValue?
}

public class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let values: [String: MLMultiArray]

    public init(dictionary: [String: Any]) throws {
        values = dictionary.mapValues { $0 as! MLMultiArray }
    }

    public func featureValue(for name: String) -> MLFeatureValue? { values[name].map(MLFeatureValue.init) }
}

public struct ToyFailure: LocalizedError {
    public let errorDescription: String? = "failed"
}

/// In how many predictions the toy fails; nil for never.
public nonisolated(unsafe) var toyFailsIn: Int?

public class MLModel {
    public let modelDescription = MLModelDescription(["inputIds", "position", "length", "total"])
    private let size: Int

    init(_ function: String?) {
        size = function == "prefill" ? 64 : 1
    }

    public class func load(contentsOf _: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        MLModel(configuration.functionName)
    }

    public class func compileModel(at _: URL) async throws -> URL {
        let made = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try Data().write(to: made)
        return made
    }

    public func makeState() -> MLState { MLState() }

    public func prediction(from input: MLFeatureProvider, using state: MLState) throws -> MLFeatureProvider {
        func values(_ name: String) -> [Int] { input.featureValue(for: name)!.multiArrayValue!.values.map { Int($0) } }
        let ids = values("inputIds"), count = values("length")[0]
        precondition(ids.count == size && values("position") == [state.tokens.count] && count <= size)
        precondition(state.tokens.count + count <= values("total")[0])
        state.tokens += ids.prefix(count).map(Int32.init)
        if let left = toyFailsIn {
            toyFailsIn = left == 0 ? nil : left - 1
            if left == 0 { throw ToyFailure() }
        }
        Thread.sleep(forTimeInterval: 0.0002)
        let letter = state.tokens.reduce(1) { (31 * $0 + Int($1)) % 65521 } % 29
        var logits = [Double](repeating: 0, count: 256)
        logits[letter < 26 ? 97 + letter : 0] = 1
        return try MLDictionaryFeatureProvider(dictionary: ["logits": MLMultiArray(values: logits)])
    }

    public func prediction(from input: MLFeatureProvider, using state: MLState) async throws -> MLFeatureProvider {
        try await Task.sleep(nanoseconds: 200_000)
        let predict: (MLFeatureProvider, MLState) throws -> MLFeatureProvider = prediction
        return try predict(input, state)
    }
}
