// What the kit uses of CoreML, from developer.apple.com/documentation/coreml. Nothing is Sendable here that need not be. The model
// is the toy of `conversation_vectors.py`: it takes tokens as the package's functions do. It fails where a message has one of two
// characters, see `kit_talks.py`, and ends the process where two predictions meet on one state.
import Foundation

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public var functionName: String?

    public init() {}
}

public class MLState {
    var tokens: [Int32] = []
    var used = false
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

/// The toy fails once in a chat: in so many decode calls, or in the next call where that is 0.
private nonisolated(unsafe) var failsIn: Int?
private nonisolated(unsafe) var failed = false

public class MLModel {
    public let modelDescription = MLModelDescription(["inputIds", "position", "length", "total"])
    private let size: Int

    init(_ function: String?) {
        size = function == "prefill" ? 64 : 1
    }

    public class func load(contentsOf _: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        failed = false
        return MLModel(configuration.functionName)
    }

    public class func compileModel(at _: URL) async throws -> URL {
        let made = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try Data().write(to: made)
        return made
    }

    public func makeState() -> MLState { MLState() }

    public func prediction(from input: MLFeatureProvider, using state: MLState) throws -> MLFeatureProvider {
        try predict(input, state)
    }

    public func prediction(from input: MLFeatureProvider, using state: MLState) async throws -> MLFeatureProvider {
        precondition(!state.used)
        state.used = true
        try await Task.sleep(nanoseconds: 1_000_000)
        state.used = false
        return try predict(input, state)
    }

    private func predict(_ input: MLFeatureProvider, _ state: MLState) throws -> MLFeatureProvider {
        precondition(!state.used)
        state.used = true
        defer { state.used = false }
        Thread.sleep(forTimeInterval: 0.001)
        func values(_ name: String) -> [Int] { input.featureValue(for: name)!.multiArrayValue!.values.map { Int($0) } }
        let ids = values("inputIds"), count = values("length")[0]
        precondition(ids.count == size && values("position") == [state.tokens.count] && count <= size)
        precondition(state.tokens.count + count <= values("total")[0])
        state.tokens += ids.prefix(count).map(Int32.init)
        if let left = failsIn, left > 0, size == 1 { failsIn = left - 1 }
        if ids.contains(7), !failed { failsIn = 0 }
        if ids.contains(6), !failed { failsIn = 3 }
        if failsIn == 0 {
            failsIn = nil
            failed = true
            throw ToyFailure()
        }
        let letter = state.tokens.reduce(1) { (31 * $0 + Int($1)) % 65521 } % 29
        var logits = [Double](repeating: 0, count: 256)
        logits[letter < 26 ? 97 + letter : 0] = 1
        return try MLDictionaryFeatureProvider(dictionary: ["logits": MLMultiArray(values: logits)])
    }
}
