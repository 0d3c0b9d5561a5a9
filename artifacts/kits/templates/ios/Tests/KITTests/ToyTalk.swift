import Foundation

@testable import «name»

/// The vectors of conversations.
enum Conversations {
    struct File: Decodable {
        let conversations: All
    }

    struct All: Decodable {
        let format: Format
        let rules: [RulesEntry]
        let cases: [Case]
    }

    struct Format: Decodable {
        let begin, `default`, answer: String
        let roles: [String: [String]]
        let strips: [String]

        var chat: ChatFormat {
            let roles = roles.mapValues { (before: $0[0], after: $0[1]) }
            return ChatFormat(begin: begin, default: `default`, roles: roles, answer: answer, strips: Set(strips))
        }
    }

    struct RulesEntry: Decodable {
        let context, chunk, rows, ring: Int
        let long_rope_after: Int?
        let stops: [Int]

        var rules: Rules {
            Rules(
                context: context, chunk: chunk, rows: rows, longRopeAfter: long_rope_after, stops: Set(stops), ring: ring
            )
        }
    }

    struct Case: Decodable {
        let name: String
        let system: String?
        let rules: Int
        /// The steps of a group begin at once.
        let groups: [[Step]]
    }

    struct Step: Decodable, Sendable {
        let reset: Bool?
        let send: String?
        let limit, stop, fail: Int?
        let pieces: [String]
        let error: String?
        let messages: [[String]]
        let seen: [Int]

        var outcome: ToyTalk.Outcome {
            ToyTalk.Outcome(pieces: pieces, error: error, messages: messages, seen: seen)
        }
    }
}

/// A conversation over a toy model whose tokens are bytes, with its answers in turns as those of `Chat`.
actor ToyTalk {
    struct Outcome: Equatable, Sendable {
        var pieces: [String] = []
        var error: String?
        var messages: [[String]] = []
        var seen: [Int] = []
    }

    private var conversation: Conversation
    private let toy = Toy()
    private let turns = Turns()
    private var found: [Outcome] = []

    init(rules: Rules, chat: ChatFormat, system: String?) throws {
        conversation = try Conversation(rules: rules, chat: chat, system: system)
    }

    /// Takes steps that begin at once.
    func take(_ steps: [Conversations.Step]) async -> [Outcome] {
        found = []
        let tasks = steps.map { step in
            turns.add {
                await Task.yield()
                await self.take(step)
            }
        }
        for task in tasks { await task.value }
        return found
    }

    private func take(_ step: Conversations.Step) {
        var outcome = Outcome()
        toy.failsIn = step.fail
        do {
            if let text = step.send {
                try conversation.send(
                    text,
                    limit: step.limit ?? 0,
                    engine: toy,
                    tokenize: { $0.utf8.map(Int.init) },
                    decode: { String(UnicodeScalar(UInt8($0))) },
                    show: { piece in
                        outcome.pieces.append(piece)
                        return outcome.pieces.count != step.stop
                    }
                )
            } else {
                conversation.reset()
            }
        } catch {
            outcome.error = error.localizedDescription
        }
        toy.failsIn = nil
        outcome.messages = conversation.messages.map { [$0.role, $0.content] }
        outcome.seen = conversation.seen
        found.append(outcome)
    }
}

private final class Toy: Engine {
    struct Failure: LocalizedError {
        let errorDescription: String?
    }

    var failsIn: Int?
    private var cache: [Int] = []

    func run(_ calls: [Call], tokens: [Int]) throws -> Int? {
        for call in calls {
            guard call.start == 0 || call.start == cache.count else { throw Failure(errorDescription: "a call at \(call.start)") }
            cache = Array(cache.prefix(call.start)) + tokens[call.start ..< call.start + call.count]
        }
        if let left = failsIn {
            if left == 0 {
                cache = Array(cache.prefix((cache.count + 1) / 2))
                throw Failure(errorDescription: "failed")
            }
            failsIn = left - 1
        }
        guard cache == tokens else { throw Failure(errorDescription: "the cache holds other tokens") }
        let letter = tokens.reduce(1) { (31 * $0 + $1) % 65521 } % 29
        return letter < 26 ? 97 + letter : 0
    }
}
