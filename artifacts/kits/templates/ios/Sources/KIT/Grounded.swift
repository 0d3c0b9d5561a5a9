import Foundation

/// A question with passages of documents in front.
struct Grounded {
    /// To send.
    let message: String
    /// Those in the message, the best one first.
    let passages: [Passage]
    /// What was said before, which may be shorter now.
    let messages: [Message]

    private static let introduction = «introduction | swift»
    private static let mark = "\n\nQuestion: "
    /// Words of a question that leans on the one before it.
    private static let short = «short»

    /// Which passages come with a question, and which leave with those before it.
    ///
    /// Passages take at most half of the context, and leave a quarter to the answer. Where a conversation grows too long for that,
    /// earlier questions lose theirs: what was said stays.
    ///
    /// - Parameter count: the tokens of a prompt of messages
    init(
        _ documents: Documents, _ question: String, said: [Message], context: Int, count: ([Message]) throws -> Int
    ) throws {
        let found = try documents.search(Self.lookedUp(question, said))
        let most = try count([Message(role: "user", content: question)]) + context / 2

        func fitting(_ before: [Message]) throws -> [Passage] {
            var chosen: [Passage] = []
            for passage in found {
                let message = Message(role: "user", content: Self.message(question, chosen + [passage]))
                if try count([message]) <= most, try count(before + [message]) <= context * 3 / 4 { chosen.append(passage) }
            }
            return chosen
        }

        var messages = said
        var chosen = try fitting(messages)
        if !found.isEmpty, chosen.isEmpty {
            messages = said.map { $0.role == "user" ? Message(role: $0.role, content: Self.question(of: $0.content)) : $0 }
            chosen = try fitting(messages)
        }
        message = Self.message(question, chosen)
        passages = chosen
        self.messages = messages
    }

    /// Without documents.
    init(message: String, messages: [Message]) {
        self.message = message
        passages = []
        self.messages = messages
    }

    /// The best passage comes last, next to the question; without any it is the question.
    private static func message(_ question: String, _ passages: [Passage]) -> String {
        if passages.isEmpty { return question }
        let texts = passages.reversed().map { "From \($0.source):\n\($0.text)" }
        return ([introduction] + texts).joined(separator: "\n\n") + mark + question
    }

    private static func question(of message: String) -> String {
        guard message.hasPrefix(introduction), let place = message.range(of: mark, options: .backwards) else { return message }
        return String(message[place.upperBound...])
    }

    /// A short question with the one before it.
    private static func lookedUp(_ question: String, _ said: [Message]) -> String {
        if Words.of(question).count > short { return question }
        let before = said.last { $0.role == "user" }.map { Self.question(of: $0.content) }
        return ([question] + (before.map { [$0] } ?? [])).joined(separator: " ")
    }
}
