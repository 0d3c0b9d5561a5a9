import CoreML
import Foundation
import Tokenizers

/// A conversation with the model in a bundle. It may be used from everywhere: answers come one after the other, in the order of
/// the calls.
public actor Chat {
    private let model: CoreMLModel
    private let tokenizer: any Tokenizer
    private var conversation: Conversation
    private let turns = Turns()

    /// Reads every file of the bundle the first time, a second or so a gigabyte, and compiles the package for this device.
    ///
    /// `progress` gets the part of the bytes that was read, from 0 to 1, that first time.
    /// Throws `DamagedBundle` for a bundle that is not whole, and `NotEnoughMemory` before the system would end the app.
    public init(
        bundle: URL,
        sampler: Sampler = Sampler(),
        system: String? = nil,
        units: MLComputeUnits = .cpuAndGPU,
        progress: @Sendable (Double) -> Void = { _ in }
    ) async throws {
        conversation = try Conversation(rules: ModelInfo.rules, chat: ModelInfo.chat, system: system)
        let support = URL.applicationSupportDirectory
        try FileManager.default.createDirectory(at: support, withIntermediateDirectories: true)
        let memory = support.appending(path: "pocketphi-checked")
        try Integrity.check(bundle, manifestSHA256: ModelInfo.manifestSHA256, memory: memory, progress: progress)
        try MemoryReport.require(ModelInfo.memoryBytes)
        model = try await CoreMLModel.load(package: bundle.appending(path: "model.mlpackage"), units: units, sampler: sampler)
        tokenizer = try await AutoTokenizer.from(modelFolder: bundle)
    }

    /// Answers a message in at most `limit` tokens. The text comes in pieces, as it is made; ending the loop ends the answer.
    ///
    /// A message waits until the answers before it have ended. One that is too long throws `MessageTooLong`, and the conversation
    /// goes on as before it. Where an answer was ended or failed, the conversation goes on after what was shown of it.
    ///
    /// With `documents` the model reads their best passages for the text before it answers; `sources` gets these first.
    public nonisolated func send(
        _ text: String,
        limit: Int = 512,
        documents: Documents? = nil,
        sources: @escaping @Sendable ([Passage]) -> Void = { _ in }
    ) -> AsyncThrowingStream<String, any Error> {
        AsyncThrowingStream { continuation in
            let task = turns.add {
                do {
                    try await self.answer(text, limit, documents, sources) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    /// Begins a new conversation with the same system message, after the answers that were asked for before.
    public nonisolated func reset() async {
        await turns.add { await self.forget() }.value
    }

    private func forget() {
        conversation.reset()
    }

    private func answer(
        _ text: String, _ limit: Int, _ documents: Documents?, _ sources: ([Passage]) -> Void, show: (String) -> Void
    ) throws {
        guard !Task.isCancelled else { return }
        var stream = TextStream { [tokenizer] in tokenizer.decode(tokens: $0, skipSpecialTokens: true) }
        let tokenize = { [tokenizer] (text: String) in tokenizer.encode(text: text, addSpecialTokens: false) }
        let grounded = try conversation.ground(text, documents, tokenize: tokenize)
        sources(grounded.passages)
        try conversation.send(
            grounded.message,
            limit: limit,
            engine: model,
            tokenize: tokenize,
            decode: { stream.step($0) },
            show: { piece in
                show(piece)
                return !Task.isCancelled
            }
        )
    }
}
