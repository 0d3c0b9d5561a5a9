import Foundation
import XCTest

@testable import Sample

/// Adapters over a toy model, whose answers each adapter changes.
final class AdapterTests: XCTestCase {
    func testAdaptersAreSwitchedWhileTheModelIsLoaded() async throws {
        let bundle = URL(filePath: try XCTUnwrap(ProcessInfo.processInfo.environment["BUNDLE"]))
        let chat = try await Chat(bundle: bundle)
        let plain = try await answer(chat)
        do {
            try await chat.adapt("french")
            XCTFail("there is no such adapter")
        } catch {
            XCTAssertEqual(error.localizedDescription, "no adapter")
        }
        let folder = bundle.appending(path: "adapters")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        try Data().write(to: folder.appending(path: "french.onnx_adapter"))
        for _ in 0 ..< 2 { // its file is read once
            try await chat.adapt("french")
            let adapted = try await answer(chat)
            XCTAssertNotEqual(adapted, plain)
            try await chat.adapt(nil)
            let without = try await answer(chat)
            XCTAssertEqual(without, plain)
        }
    }

    private func answer(_ chat: Chat) async throws -> String {
        var text = ""
        for try await piece in chat.send("Hello", limit: 12) { text += piece }
        return text
    }
}
