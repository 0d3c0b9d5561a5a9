import Foundation
import onnxruntime_genai_objc

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

/// A conversation with the model in a bundle.
public actor Chat {
    private let model: OGAModel
    private let tokenizer: OGATokenizer
    private let generator: OGAGenerator
    private var messages: [Message]
    private var seen: [Int] = []

    /// Reads every file of the bundle the first time, a second or so a gigabyte.
    ///
    /// Throws `DamagedBundle` for a bundle that is not whole, and `NotEnoughMemory` before the system would end the app.
    public init(bundle: URL, sampling: Sampling = Sampling(), system: String? = nil) throws {
        let support = URL.applicationSupportDirectory
        try FileManager.default.createDirectory(at: support, withIntermediateDirectories: true)
        let memory = support.appending(path: "pocketphi-checked")
        try Integrity.check(bundle, manifestSHA256: ModelInfo.manifestSHA256, memory: memory)
        try MemoryReport.require(ModelInfo.memoryBytes)
        model = try OGAModel(path: bundle.path(percentEncoded: false))
        tokenizer = try OGATokenizer(model: model)
        let parameters = try OGAGeneratorParams(model: model)
        try parameters.setSearchOption("max_length", doubleValue: Double(ModelInfo.context))
        try parameters.setSearchOption("do_sample", boolValue: sampling.temperature > 0)
        if sampling.temperature > 0 {
            try parameters.setSearchOption("temperature", doubleValue: sampling.temperature)
            try parameters.setSearchOption("top_k", doubleValue: Double(sampling.topK))
            try parameters.setSearchOption("top_p", doubleValue: sampling.topP)
        }
        generator = try OGAGenerator(model: model, params: parameters)
        messages = system.map { [Message(role: "system", content: $0)] } ?? []
    }

    /// Answers a message in at most `limit` tokens. The text comes in pieces, as it is made; ending the loop ends the answer.
    public nonisolated func send(_ text: String, limit: Int = 512) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    try await self.answer(text, limit: limit) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    private func answer(_ text: String, limit: Int, show: (String) -> Void) throws {
        messages.append(Message(role: "user", content: text))
        let prompt = try tokens(of: tokenizer.encode(ModelInfo.chat.render(messages)))
        guard prompt.count < ModelInfo.context else { throw ConversationTooLong(tokens: prompt.count) }
        let start = ModelInfo.rules.calls(seen: seen, tokens: prompt)[0].start
        try generator.rewind(to: start)
        try generator.appendTokens(prompt[start...].map { NSNumber(value: $0) })
        var answer = ""
        var made: [Int] = []
        defer {
            messages.append(Message(role: "assistant", content: answer))
            seen = Array((prompt + made).dropLast())  // the last token is not in the cache yet
        }
        let stream = try OGATokenizerStream(tokenizer: tokenizer)
        while !Task.isCancelled {
            try generator.generateNextToken()
            let token = try lastToken()
            made.append(token)
            let end = ModelInfo.rules.end(token: token, made: made.count, prompt: prompt.count, limit: limit)
            if end != .stop {
                let piece = try stream.decode(Int32(token))
                answer += piece
                show(piece)
            }
            if end != nil { return }
        }
    }

    private func tokens(of sequences: OGASequences) throws -> [Int] {
        let count = sequences.sequenceCount(at: 0, error: nil)
        let data = try sequences.sequenceData(at: 0)
        return UnsafeBufferPointer(start: data, count: count).map(Int.init)
    }

    private func lastToken() throws -> Int {
        let count = generator.sequenceCount(at: 0, error: nil)
        return try Int(generator.sequenceData(at: 0)[count - 1])
    }
}

/// A conversation that has more tokens than the model's cache holds: start a new one.
public struct ConversationTooLong: LocalizedError {
    public let tokens: Int
    public var errorDescription: String? { "the conversation has \(tokens) tokens, of \(ModelInfo.context)" }
}
