// What the kit uses of CoreML, from developer.apple.com/documentation/coreml. Nothing is Sendable here that need not be. It ends
// the process where two predictions meet on one state. With a peer, that runs the package. Else the model is the toy of
// `conversation_vectors.py`: it takes tokens as the package's functions do, and fails where a message has one of two characters,
// see `kit_talks.py`.
import Foundation
import Peer

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public var functionName: String?

    public init() {}
}

public class MLState {
    let number: Int
    var tokens: [Int32] = []
    var used = false

    init(_ number: Int) {
        self.number = number
    }
}

public class MLFeatureDescription {}

public class MLModelDescription {
    public let inputDescriptionsByName: [String: MLFeatureDescription]

    init(_ names: [String]) {
        inputDescriptionsByName = Dictionary(uniqueKeysWithValues: names.map { ($0, MLFeatureDescription()) })
    }
}

public class MLMultiArray {
    let integers: [Int32]
    let floats: [Float]
    let shape: [Int]

    init(floats: [Float]) {
        (integers, self.floats, shape) = ([], floats, [1, 1, floats.count])
    }

    public init(_ array: MLShapedArray<Int32>) {
        (integers, floats, shape) = (array.scalars, [], array.shape)
    }
}

public protocol MLShapedArrayScalar {}
extension Int32: MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}

public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public let scalars: [Scalar]
    let shape: [Int]

    public init(scalars: [Scalar], shape: [Int]) {
        precondition(scalars.count == shape.reduce(1, *))
        (self.scalars, self.shape) = (scalars, shape)
    }
}

extension MLShapedArray where Scalar == Float {
    public init(converting array: MLMultiArray) {
        self.init(scalars: array.floats, shape: array.shape)
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
    public let modelDescription: MLModelDescription
    private let function: String

    init(_ function: String) throws {
        let toys = ["inputIds", "position", "length", "total"]
        self.function = function
        modelDescription = MLModelDescription(try Peer.shared?.ask { $0.function = function }.names! ?? toys)
    }

    public class func load(contentsOf compiled: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        precondition(FileManager.default.fileExists(atPath: compiled.path(percentEncoded: false)))
        failed = false
        return try MLModel(configuration.functionName!)
    }

    public class func compileModel(at package: URL) async throws -> URL {
        let manifest = package.appending(path: "Manifest.json")
        let made = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try (Peer.shared == nil ? Data() : Data(contentsOf: manifest)).write(to: made)
        return made
    }

    public func makeState() -> MLState {
        MLState(Peer.shared.map { try! $0.ask { _ in }.state! } ?? 0)
    }

    public func prediction(from input: MLFeatureProvider, using state: MLState) throws -> MLFeatureProvider {
        precondition(!state.used)
        state.used = true
        defer { state.used = false }
        return try predict(input, state)
    }

    public func prediction(from input: MLFeatureProvider, using state: MLState) async throws -> MLFeatureProvider {
        precondition(!state.used)
        state.used = true
        try await Task.sleep(nanoseconds: 1_000_000)
        state.used = false
        return try predict(input, state)
    }

    private func predict(_ input: MLFeatureProvider, _ state: MLState) throws -> MLFeatureProvider {
        let arrays = modelDescription.inputDescriptionsByName.keys.map { ($0, input.featureValue(for: $0)!.multiArrayValue!) }
        let inputs = Dictionary(uniqueKeysWithValues: arrays)
        let logits = try Peer.shared.map { try ask($0, inputs, state) } ?? toy(inputs.mapValues { $0.integers.map(Int.init) }, state)
        return try MLDictionaryFeatureProvider(dictionary: ["logits": MLMultiArray(floats: logits)])
    }

    private func ask(_ peer: Peer, _ inputs: [String: MLMultiArray], _ state: MLState) throws -> [Float] {
        let answer = try peer.ask {
            $0.function = function
            $0.state = state.number
            $0.inputs = inputs.mapValues { Question.Input(shape: $0.shape, values: $0.integers) }
        }
        return answer.logits!.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
    }

    private func toy(_ inputs: [String: [Int]], _ state: MLState) throws -> [Float] {
        Thread.sleep(forTimeInterval: 0.001)
        let ids = inputs["inputIds"]!, count = inputs["length"]![0]
        let size = function == "prefill" ? 64 : 1
        precondition(ids.count == size && inputs["position"] == [state.tokens.count] && count <= size)
        precondition(state.tokens.count + count <= inputs["total"]![0])
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
        var logits = [Float](repeating: 0, count: 256)
        logits[letter < 26 ? 97 + letter : 0] = 1
        return logits
    }
}
