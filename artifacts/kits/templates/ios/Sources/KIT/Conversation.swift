import Foundation

/// A message that does not fit into the model's cache. The conversation is as it was before it.
public struct MessageTooLong: LocalizedError {
    /// Tokens of the message.
    public let tokens: Int
    /// Tokens of the conversation and its template without the message.
    public let taken: Int
    /// Tokens that the cache holds.
    public let context: Int

    public var errorDescription: String? {
        "the message has \(tokens) tokens, and there is room for \(max(0, context - 1 - taken)): the cache holds \(context), "
            + "the conversation and its template take \(taken), and an answer needs at least 1"
    }
}

/// A system message for a model whose chat template has none.
public struct NoSystemMessage: LocalizedError {
    public var errorDescription: String? { "this model takes no system message" }
}

/// A model with its cache.
protocol Engine: AnyObject {
    /// Brings the cache to `tokens` by these calls; one that starts at 0 empties it first. Returns the token that follows,
    /// nil where the runtime ends the answer itself.
    func run(_ calls: [Call], tokens: [Int]) throws -> Int?
}

/// What was said, and what of it the model's cache holds.
struct Conversation {
    private(set) var messages: [Message]
    /// The tokens that the cache holds, none where that is not known.
    private(set) var seen: [Int] = []
    private let start: [Message]
    private let rules: Rules
    private let chat: ChatFormat

    init(rules: Rules, chat: ChatFormat, system: String?) throws {
        if system != nil, chat.roles["system"] == nil { throw NoSystemMessage() }
        self.rules = rules
        self.chat = chat
        start = system.map { [Message(role: "system", content: $0)] } ?? []
        messages = start
    }

    /// Begins again with the system message alone.
    mutating func reset() {
        messages = start
    }

    /// The message to send for a text, with the passages of documents that fit: see `Grounded`.
    mutating func ground(_ text: String, _ documents: Documents?, tokenize: (String) throws -> [Int]) throws -> Grounded {
        guard let documents else { return Grounded(message: text, messages: messages) }
        let made = try Grounded(documents, text, said: messages, context: rules.context) { try tokenize(chat.render($0)).count }
        messages = made.messages
        return made
    }

    /// Answers a message in at most `limit` tokens. `show` gets a piece for each, and says whether to go on.
    ///
    /// The message belongs to the conversation once its prompt ran. The answer is then what was shown, however it ended. Throws
    /// `MessageTooLong`.
    ///
    /// - Parameters:
    ///   - tokenize: a text's tokens, none added
    ///   - decode: the text that a token of the answer completes
    mutating func send(
        _ text: String,
        limit: Int,
        engine: some Engine,
        tokenize: (String) throws -> [Int],
        decode: (Int) throws -> String,
        show: (String) -> Bool
    ) throws {
        let prompt = try prompt(text, tokenize)
        var next = try run(engine, prompt)
        messages.append(Message(role: "user", content: text))
        var answer = ""
        defer { messages.append(Message(role: "assistant", content: answer)) }
        var made = 1
        while let token = next {
            let end = rules.end(token: token, made: made, prompt: prompt.count, limit: limit)
            if end == .stop { return }
            let piece = try decode(token)
            answer += piece
            guard show(piece), end == nil else { return }
            next = try run(engine, seen + [token])
            made += 1
        }
    }

    private func prompt(_ text: String, _ tokenize: (String) throws -> [Int]) throws -> [Int] {
        let prompt = try tokenize(chat.render(messages + [Message(role: "user", content: text)]))
        guard prompt.count >= rules.context else { return prompt }
        let taken = try tokenize(chat.render(messages + [Message(role: "user", content: "")])).count
        throw MessageTooLong(tokens: prompt.count - taken, taken: taken, context: rules.context)
    }

    private mutating func run(_ engine: some Engine, _ tokens: [Int]) throws -> Int? {
        let calls = rules.calls(seen: seen, tokens: tokens)
        seen = [] // so it stays where the engine fails half-way
        let token = try engine.run(calls, tokens: tokens)
        seen = tokens
        return token
    }
}
