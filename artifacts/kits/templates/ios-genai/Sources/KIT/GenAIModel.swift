import CGenAI
import Foundation

/// How the next token is chosen. Temperature 0 takes the most likely one; `topK` 0 and `topP` 1 set no limit.
public struct Sampling: Sendable {
    let temperature: Double
    let topK: Int
    let topP: Double

    public init(temperature: Double = 0, topK: Int = 0, topP: Double = 1) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
    }
}

/// What onnxruntime-genai says of a failure.
public struct RuntimeFailure: LocalizedError {
    public let errorDescription: String?
}

/// The model in onnxruntime-genai, through its C interface. One call at a time.
final class GenAIModel: Engine {
    private let bundle: URL
    private let model, tokenizer, parameters, adapters: Handle
    private var generator: Handle?
    private var loaded: Set<String> = []
    /// The tokens that the generator holds.
    private var sequence: [Int] = []

    init(bundle: URL, context: Int, sampling: Sampling) throws {
        let model = try Handle(OgaDestroyModel) { OgaCreateModel(bundle.path(percentEncoded: false), $0) }
        let parameters = try Handle(OgaDestroyGeneratorParams) { OgaCreateGeneratorParams(model.pointer, $0) }
        var numbers = ["max_length": Double(context)]
        if sampling.temperature > 0 {
            numbers["temperature"] = sampling.temperature
            numbers["top_k"] = Double(sampling.topK)
            numbers["top_p"] = sampling.topP
        }
        for (name, value) in numbers {
            try check(OgaGeneratorParamsSetSearchNumber(parameters.pointer, name, value))
        }
        try check(OgaGeneratorParamsSetSearchBool(parameters.pointer, "do_sample", sampling.temperature > 0))
        tokenizer = try Handle(OgaDestroyTokenizer) { OgaCreateTokenizer(model.pointer, $0) }
        adapters = try Handle(OgaDestroyAdapters) { OgaCreateAdapters(model.pointer, $0) }
        generator = try Handle(OgaDestroyGenerator) { OgaCreateGenerator(model.pointer, parameters.pointer, $0) }
        self.bundle = bundle
        self.model = model
        self.parameters = parameters
    }

    /// Switches an adapter of the bundle on, none for nil, and forgets all tokens. An adapter's file is read once.
    func adapt(_ name: String?) throws {
        if let name, !loaded.contains(name) {
            let file = bundle.appending(path: "adapters/\(name).onnx_adapter").path(percentEncoded: false)
            try check(OgaLoadAdapter(adapters.pointer, file, name))
            loaded.insert(name)
        }
        sequence = []
        generator = nil // it has to be chosen before a generator's first token, and two would take the memory of two caches
        let made = try Handle(OgaDestroyGenerator) { OgaCreateGenerator(model.pointer, parameters.pointer, $0) }
        if let name { try check(OgaSetActiveAdapter(made.pointer, adapters.pointer, name)) }
        generator = made
    }

    func run(_ calls: [Call], tokens: [Int]) throws -> Int? {
        guard let generator else {
            throw RuntimeFailure(errorDescription: "no generator: choose an adapter again, or none")
        }
        let held = sequence
        sequence = [] // so it stays where the runtime fails half-way
        if tokens != held {
            let start = calls[0].start
            try check(OgaGenerator_RewindTo(generator.pointer, start))
            let new = tokens[start...].map(Int32.init)
            try check(OgaGenerator_AppendTokens(generator.pointer, new, new.count))
        }
        try check(OgaGenerator_GenerateNextToken(generator.pointer))
        let count = OgaGenerator_GetSequenceCount(generator.pointer, 0)
        guard count > tokens.count else { // an end token of the model, which the runtime does not append
            sequence = tokens
            return nil
        }
        let token = Int(OgaGenerator_GetSequenceData(generator.pointer, 0)[count - 1])
        sequence = tokens + [token]
        return token
    }

    /// A text's tokens, none added.
    func tokenize(_ text: String) throws -> [Int] {
        let sequences = try Handle(OgaDestroySequences) { OgaCreateSequences($0) }
        try check(OgaTokenizerEncode(tokenizer.pointer, text, sequences.pointer))
        let count = OgaSequencesGetSequenceCount(sequences.pointer, 0)
        return UnsafeBufferPointer(start: OgaSequencesGetSequenceData(sequences.pointer, 0), count: count).map(Int.init)
    }

    /// Turns the tokens of one answer into text, token by token.
    func makeStream() throws -> (Int) throws -> String {
        let stream = try Handle(OgaDestroyTokenizerStream) { OgaCreateTokenizerStream(tokenizer.pointer, $0) }
        return { token in
            var text: UnsafePointer<CChar>?
            try check(OgaTokenizerStreamDecode(stream.pointer, Int32(token), &text))
            return text.map { String(cString: $0) } ?? ""
        }
    }
}

/// An object of the C interface, which is freed with this one.
private final class Handle {
    let pointer: OpaquePointer
    private let destroy: (OpaquePointer?) -> Void

    init(
        _ destroy: @escaping (OpaquePointer?) -> Void,
        _ create: (UnsafeMutablePointer<OpaquePointer?>) -> OpaquePointer?
    ) throws {
        var made: OpaquePointer?
        try check(create(&made))
        guard let made else { throw RuntimeFailure(errorDescription: "onnxruntime-genai made nothing") }
        pointer = made
        self.destroy = destroy
    }

    deinit {
        destroy(pointer)
    }
}

/// Throws what a call of the C interface reports.
private func check(_ result: OpaquePointer?) throws {
    guard let result else { return }
    defer { OgaDestroyResult(result) }
    throw RuntimeFailure(errorDescription: String(cString: OgaResultGetError(result)))
}
