import XCTest

@testable import «name»

/// Search in documents against vectors that pocketphi's own tests share.
final class DocumentsTests: XCTestCase {
    private struct File: Decodable {
        let documents: All
    }

    private struct All: Decodable {
        let words: [Text]
        let index: Data
        let searches: [Search]
        let grounded: [Talk]
    }

    private struct Text: Decodable {
        let text, spaced: String
        let words: [String]
    }

    private struct Search: Decodable {
        let question: String
        let most: Int
        let found: [[String]]
    }

    private struct Talk: Decodable {
        let question: String
        let said: [[String]]
        let context: Int
        let message: String
        let passages, messages: [[String]]
    }

    private var vectors: All!
    private var folder = URL.temporaryDirectory

    override func setUpWithError() throws {
        let url = try XCTUnwrap(Bundle.module.url(forResource: "vectors", withExtension: "json"))
        vectors = try JSONDecoder().decode(File.self, from: Data(contentsOf: url)).documents
        folder = URL.temporaryDirectory.appending(path: UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    override func tearDownWithError() throws {
        try? FileManager.default.removeItem(at: folder)
    }

    func testWords() {
        XCTAssertFalse(vectors.words.isEmpty)
        for test in vectors.words {
            XCTAssertEqual(Words.spaced(test.text), test.spaced)
            XCTAssertEqual(Words.of(test.text), test.words)
        }
    }

    func testSearches() throws {
        let documents = try documents()
        XCTAssertFalse(vectors.searches.isEmpty)
        for test in vectors.searches {
            let found = try documents.search(test.question, most: test.most)
            XCTAssertEqual(found.map(\.parts), test.found, test.question)
        }
    }

    func testQuestionsWithPassages() throws {
        let documents = try documents()
        XCTAssertFalse(vectors.grounded.isEmpty)
        for test in vectors.grounded {
            let said = test.said.map { Message(role: $0[0], content: $0[1]) }
            let made = try Grounded(documents, test.question, said: said, context: test.context) { all in
                all.reduce(0) { $0 + 7 + $1.content.utf8.count }
            }
            XCTAssertEqual(made.message, test.message)
            XCTAssertEqual(made.passages.map(\.parts), test.passages)
            XCTAssertEqual(made.messages.map { [$0.role, $0.content] }, test.messages)
        }
    }

    func testWhatIsNoIndexIsRefused() throws {
        let files = [
            ("damaged", vectors.index.prefix(20000)),
            ("other", Data("no database at all, but long enough to look like one".utf8)),
        ]
        for (name, data) in files { try data.write(to: folder.appending(path: name)) }
        for name in files.map(\.0) + ["none"] {
            let place = folder.appending(path: name)
            XCTAssertThrowsError(try Documents(index: place).search("harbour ferry")) { error in
                XCTAssertTrue(error.localizedDescription.hasPrefix("\(place.path): "), "\(error)")
            }
        }
    }

    private func documents() throws -> Documents {
        let place = folder.appending(path: "index")
        try vectors.index.write(to: place)
        return try Documents(index: place)
    }
}

private extension Passage {
    var parts: [String] { [file, place, heading, text] }
}
