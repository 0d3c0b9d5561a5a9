import CoreML
import Foundation
import Tokenizers

/// A conversation with the model in a bundle.
public actor Chat {
    private let model: CoreMLModel
    private let tokenizer: any Tokenizer
    private var sampler: Sampler
    private var messages: [Message]
    private var seen: [Int] = []

    /// Reads every file of the bundle the first time, a second or so a gigabyte, and compiles the package for this device.
    ///
    /// Throws `DamagedBundle` for a bundle that is not whole, and `NotEnoughMemory` before the system would end the app.
    public init(
        bundle: URL,
        sampler: Sampler = Sampler(),
        system: String? = nil,
        units: MLComputeUnits = .cpuAndGPU
    ) async throws {
        let support = URL.applicationSupportDirectory
        try FileManager.default.createDirectory(at: support, withIntermediateDirectories: true)
        let memory = support.appending(path: "pocketphi-checked")
        try Integrity.check(bundle, manifestSHA256: ModelInfo.manifestSHA256, memory: memory)
        try MemoryReport.require(ModelInfo.memoryBytes)
        model = try await CoreMLModel(package: bundle.appending(path: "model.mlpackage"), units: units)
        tokenizer = try await AutoTokenizer.from(modelFolder: bundle)
        self.sampler = sampler
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

    private func answer(_ text: String, limit: Int, show: (String) -> Void) async throws {
        messages.append(Message(role: "user", content: text))
        let prompt = tokenizer.encode(text: ModelInfo.chat.render(messages), addSpecialTokens: false)
        guard prompt.count < ModelInfo.context else { throw ConversationTooLong(tokens: prompt.count) }
        var logits = try await run(prompt)
        var answer = ""
        defer { messages.append(Message(role: "assistant", content: answer)) }
        var stream = TextStream { [tokenizer] in tokenizer.decode(tokens: $0, skipSpecialTokens: true) }
        var made = 0
        while !Task.isCancelled {
            let token = sampler.choose(logits)
            made += 1
            let end = ModelInfo.rules.end(token: token, made: made, prompt: prompt.count, limit: limit)
            if end != .stop {
                let piece = stream.step(token)
                answer += piece
                show(piece)
            }
            if end != nil { return }
            logits = try await run(seen + [token])
        }
    }

    /// Brings the model's cache to these tokens; the logits that follow.
    private func run(_ tokens: [Int]) async throws -> [Float] {
        var logits: [Float] = []
        for call in ModelInfo.rules.calls(seen: seen, tokens: tokens) {
            if call.start == 0 { model.reset() }
            logits = try await model.run(call, tokens: tokens, rules: ModelInfo.rules)
        }
        seen = tokens
        return logits
    }
}

/// A conversation that has more tokens than the model's cache holds: start a new one.
public struct ConversationTooLong: LocalizedError {
    public let tokens: Int
    public var errorDescription: String? { "the conversation has \(tokens) tokens, of \(ModelInfo.context)" }
}
