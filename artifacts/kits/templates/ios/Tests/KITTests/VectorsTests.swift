import CryptoKit
import XCTest

@testable import «name»

/// The logic of this package against vectors that pocketphi's own tests share.
final class VectorsTests: XCTestCase {
    private var vectors: [String: Any] = [:]
    private var folder = URL.temporaryDirectory

    override func setUpWithError() throws {
        let url = try XCTUnwrap(Bundle.module.url(forResource: "vectors", withExtension: "json"))
        vectors = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(contentsOf: url)) as? [String: Any])
        folder = URL.temporaryDirectory.appending(path: UUID().uuidString)
    }

    override func tearDownWithError() throws {
        try? FileManager.default.removeItem(at: folder)
    }

    func testChatTemplate() throws {
        for test in try cases("chat") {
            let messages = try XCTUnwrap(test["messages"] as? [[String]]).map { Message(role: $0[0], content: $0[1]) }
            XCTAssertEqual(ModelInfo.chat.render(messages), test["prompt"] as? String)
        }
    }

    func testCalls() throws {
        for test in try cases("calls") {
            let expected = try XCTUnwrap(test["calls"] as? [[Any]]).map { call in
                try Call(
                    function: XCTUnwrap(call[0] as? String),
                    start: XCTUnwrap(call[1] as? Int),
                    count: XCTUnwrap(call[2] as? Int)
                )
            }
            XCTAssertEqual(try rules(test).calls(seen: ints(test, "seen"), tokens: ints(test, "tokens")), expected)
        }
    }

    func testAnswers() throws {
        for test in try cases("answers") {
            let rules = try rules(test)
            let prompt = try XCTUnwrap(test["prompt"] as? Int)
            let limit = try XCTUnwrap(test["limit"] as? Int)
            var made: [Int] = []
            var end: End?
            for token in try ints(test, "chosen") {
                end = rules.end(token: token, made: made.count + 1, prompt: prompt, limit: limit)
                if end != .stop { made.append(token) }
                if end != nil { break }
            }
            XCTAssertEqual(made, try ints(test, "made"))
            XCTAssertEqual(end?.rawValue, test["end"] as? String)
        }
    }

    func testConversations() async throws {
        let url = try XCTUnwrap(Bundle.module.url(forResource: "vectors", withExtension: "json"))
        let all = try JSONDecoder().decode(Conversations.File.self, from: Data(contentsOf: url)).conversations
        XCTAssertFalse(all.cases.isEmpty)
        for test in all.cases {
            let talk = try ToyTalk(rules: all.rules[test.rules].rules, chat: all.format.chat, system: test.system)
            for group in test.groups {
                let found = await talk.take(group)
                XCTAssertEqual(found, group.map(\.outcome), test.name)
            }
        }
    }
<% if runtime == "coreml" %>

    func testSampling() throws {
        for test in try cases("sampling") {
            var sampler = try Sampler(
                temperature: XCTUnwrap(test["temperature"] as? Double),
                topK: XCTUnwrap(test["top_k"] as? Int),
                topP: XCTUnwrap(test["top_p"] as? Double),
                seed: UInt64(XCTUnwrap(test["seed"] as? Int))
            )
            let logits = try XCTUnwrap(test["logits"] as? [Double]).map(Float.init)
            let expected = try ints(test, "tokens")
            XCTAssertEqual(expected.map { _ in sampler.choose(logits) }, expected)
        }
    }

    func testStreaming() throws {
        for test in try cases("stream") {
            let bytes = try XCTUnwrap(test["bytes"] as? [String]).map(unhex)
            var stream = TextStream { ids in // as with SentencePiece, a text loses a space that it begins with
                let all = ids.flatMap { bytes[$0] }
                return String(decoding: all.first == 32 ? all.dropFirst() : all[...], as: UTF8.self)
            }
            XCTAssertEqual(try ints(test, "tokens").map { stream.step($0) }, test["texts"] as? [String])
        }
    }
<% endif %>

    func testDamageIsRefused() throws {
        let integrity = try XCTUnwrap(vectors["integrity"] as? [String: Any])
        let files = try XCTUnwrap(integrity["files"] as? [String: String]).mapValues { Data(base64Encoded: $0)! }
        let pin = try XCTUnwrap(integrity["sha256"] as? String)
        XCTAssertNoThrow(try check(files, pin))
        XCTAssertNoThrow(try check(files, nil))
        let refused = try XCTUnwrap(integrity["refused"] as? [[[Any]]])
        XCTAssertGreaterThanOrEqual(refused.count, 1000)
        for steps in refused {
            XCTAssertThrowsError(try check(damaged(files, steps), nil), "\(steps)")
        }
        for steps in try XCTUnwrap(integrity["forged"] as? [[[Any]]]) {
            XCTAssertThrowsError(try check(damaged(files, steps), pin), "\(steps)")
        }
    }

    private func check(_ files: [String: Data], _ pin: String?) throws {
        try? FileManager.default.removeItem(at: folder)
        for (name, data) in files {
            let file = folder.appending(path: name)
            try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
            try data.write(to: file)
        }
        try Integrity.check(folder, manifestSHA256: pin)
    }

    private func damaged(_ files: [String: Data], _ steps: [[Any]]) throws -> [String: Data] {
        var made = files
        for step in steps {
            let name = step.count > 1 ? try XCTUnwrap(step[1] as? String) : "manifest.json"
            switch step[0] as? String {
            case "flip":
                made[name]![try XCTUnwrap(step[2] as? Int)] ^= 1 << (try XCTUnwrap(step[3] as? Int))
            case "truncate":
                made[name] = try made[name]!.prefix(XCTUnwrap(step[2] as? Int))
            case "remove":
                made[name] = nil
            case "add":
                made[name] = try Data(XCTUnwrap(step[2] as? String).utf8)
            case "swap":
                let other = try XCTUnwrap(step[2] as? String)
                (made[name], made[other]) = (made[other], made[name])
            case "write":
                let start = try XCTUnwrap(step[2] as? Int)
                let text = try Data(XCTUnwrap(step[3] as? String).utf8)
                made[name]!.replaceSubrange(start ..< start + text.count, with: text)
            case "seal":
                let head = made[name]!.dropLast(82)
                let digest = SHA256.hash(data: head).map { String(format: "%02x", $0) }.joined()
                made[name] = head + Data(",\n \"sha256\": \"\(digest)\"\n}\n".utf8)
            default:
                XCTFail("unknown step \(step)")
            }
        }
        return made
    }

    private func cases(_ name: String) throws -> [[String: Any]] {
        let found = try XCTUnwrap(vectors[name] as? [[String: Any]])
        XCTAssertFalse(found.isEmpty)
        return found
    }

    private func ints(_ test: [String: Any], _ name: String) throws -> [Int] {
        try XCTUnwrap(test[name] as? [Int])
    }

    private func rules(_ test: [String: Any]) throws -> Rules {
        try Rules(
            context: XCTUnwrap(test["context"] as? Int),
            chunk: XCTUnwrap(test["chunk"] as? Int),
            rows: XCTUnwrap(test["rows"] as? Int),
            longRopeAfter: test["long_rope_after"] as? Int,
            stops: Set(ints(test, "stops")),
            ring: XCTUnwrap(test["ring"] as? Int)
        )
    }
<% if runtime == "coreml" %>

    private func unhex(_ text: String) -> [UInt8] {
        let digits = Array(text)
        return stride(from: 0, to: digits.count, by: 2).map { UInt8(String(digits[$0 ... $0 + 1]), radix: 16)! }
    }
<% endif %>
}
