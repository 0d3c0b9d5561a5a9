// What the kit uses of swift-transformers 1.3, from Sources/Tokenizers of github.com/huggingface/swift-transformers. This one
// takes bytes for tokens.
import Foundation

public protocol Tokenizer: Sendable {
    func encode(text: String, addSpecialTokens: Bool) -> [Int]
    func decode(tokens: [Int], skipSpecialTokens: Bool) -> String
}

public enum AutoTokenizer {
    public static func from(modelFolder _: URL, strict _: Bool = true) async throws -> Tokenizer { Bytes() }
}

struct Bytes: Tokenizer {
    func encode(text: String, addSpecialTokens _: Bool) -> [Int] { text.utf8.map(Int.init) }

    func decode(tokens: [Int], skipSpecialTokens _: Bool) -> String {
        String(decoding: tokens.map { UInt8($0) }, as: UTF8.self)
    }
}
