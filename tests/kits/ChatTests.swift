import Foundation
import XCTest

@testable import Sample

/// The kit's own Chat over a toy model, with conversations whose course the reference in Python tells.
final class ChatTests: XCTestCase {
    private struct Case: Decodable {
        let name: String
        let system: String?
        let groups: [[Step]]
        let ways: [[Outcome]]
    }

    private struct Step: Decodable, Sendable {
        let reset: Bool?
        let send: String?
        let limit, stop: Int?
    }

    private struct Outcome: Decodable, Equatable, Sendable {
        let pieces: [String]
        let error: String?

        init(_ pieces: [String], _ error: String?) {
            (self.pieces, self.error) = (pieces, error)
        }

        init(from decoder: any Decoder) throws {
            var values = try decoder.unkeyedContainer()
            pieces = try values.decode([String].self)
            error = try values.decodeIfPresent(String.self)
        }
    }

    func testConversations() async throws {
        let settings = ProcessInfo.processInfo.environment
        let data = try Data(contentsOf: URL(filePath: try XCTUnwrap(settings["TALKS"])))
        let bundle = URL(filePath: try XCTUnwrap(settings["BUNDLE"]))
        let cases = try JSONDecoder().decode([Case].self, from: data)
        XCTAssertFalse(cases.isEmpty)
        for test in cases {
            let chat = try await Chat(bundle: bundle, system: test.system)
            var found: [Outcome] = []
            for group in test.groups { found += await take(chat, group) }
            XCTAssertTrue(test.ways.contains(found), "\(test.name): \(found)\n\(test.ways.prefix(3))")
        }
    }

    func testAnswersFromDocuments() async throws {
        let settings = ProcessInfo.processInfo.environment
        let bundle = URL(filePath: try XCTUnwrap(settings["BUNDLE"]))
        let url = try XCTUnwrap(Bundle.module.url(forResource: "vectors", withExtension: "json"))
        let vectors = try JSONDecoder().decode(Vectors.self, from: Data(contentsOf: url)).documents
        let index = URL.temporaryDirectory.appending(path: UUID().uuidString)
        try vectors.index.write(to: index)
        defer { try? FileManager.default.removeItem(at: index) }
        let documents = try Documents(index: index)
        let step = Step(reset: nil, send: vectors.grounded[0].message, limit: 8, stop: nil)
        let plain = try await Chat(bundle: bundle)
        let expected = await Self.read(plain.send(vectors.grounded[0].message, limit: 8), of: plain, step) // the model reads this
        let chat = try await Chat(bundle: bundle)
        let log = Log()
        let answer = chat.send(vectors.grounded[0].question, limit: 8, documents: documents) { sources in
            XCTAssertEqual(sources.map(\.text), vectors.grounded[0].passages.map { $0[3] })
            Task { await log.write(sources.count) }
        }
        let found = await Self.read(answer, of: chat, step)
        XCTAssertEqual(found, expected)
        XCTAssertFalse(found.pieces.isEmpty)
        while await log.numbers.isEmpty { await Task.yield() }
    }

    private struct Vectors: Decodable {
        struct All: Decodable {
            let index: Data
            let grounded: [Talk]
        }

        struct Talk: Decodable {
            let question, message: String
            let passages: [[String]]
        }

        let documents: All
    }

    func testTurnsDoNotMeet() async {
        let log = Log()
        let turns = Turns()
        let tasks = (0 ..< 20).map { number in
            turns.add {
                await log.write(number)
                for _ in 0 ..< 20 - number { await Task.yield() }
                await log.write(number)
            }
        }
        tasks[7].cancel()
        for task in tasks { await task.value }
        let written = await log.numbers
        XCTAssertEqual(written, (0 ..< 20).flatMap { [$0, $0] })
    }

    private actor Log {
        private(set) var numbers: [Int] = []

        func write(_ number: Int) { numbers.append(number) }
    }

    /// All begin at once, in this order; so do what reads them.
    private func take(_ chat: Chat, _ group: [Step]) async -> [Outcome] {
        let answers = group.map { step in
            let answer = step.send.map { chat.send($0, limit: step.limit ?? 0) }
            return Task { await Self.read(answer, of: chat, step) }
        }
        var found: [Outcome] = []
        for answer in answers { found.append(await answer.value) }
        return found
    }

    private static func read(_ answer: AsyncThrowingStream<String, any Error>?, of chat: Chat, _ step: Step) async -> Outcome {
        guard let answer else {
            await chat.reset()
            return Outcome([], nil)
        }
        var pieces: [String] = []
        do {
            for try await piece in answer {
                pieces.append(piece)
                if pieces.count == step.stop { break }
            }
        } catch {
            return Outcome(pieces, error.localizedDescription)
        }
        return Outcome(pieces, nil)
    }
}
