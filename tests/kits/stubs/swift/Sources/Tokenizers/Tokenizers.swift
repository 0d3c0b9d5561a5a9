// What the kit uses of swift-transformers 1.3, from Sources/Tokenizers of github.com/huggingface/swift-transformers. This one
// takes bytes for tokens, or asks the peer.
import Foundation
import Peer

public protocol Tokenizer: Sendable {
    func encode(text: String, addSpecialTokens: Bool) -> [Int]
    func decode(tokens: [Int], skipSpecialTokens: Bool) -> String
}

public enum AutoTokenizer {
    public static func from(modelFolder _: URL, strict _: Bool = true) async throws -> Tokenizer {
        Peer.shared.map(Asked.init) ?? Bytes()
    }
}

struct Bytes: Tokenizer {
    func encode(text: String, addSpecialTokens _: Bool) -> [Int] { text.utf8.map(Int.init) }

    func decode(tokens: [Int], skipSpecialTokens _: Bool) -> String {
        String(decoding: tokens.map { UInt8($0) }, as: UTF8.self)
    }
}

struct Asked: Tokenizer {
    let peer: Peer

    func encode(text: String, addSpecialTokens: Bool) -> [Int] {
        precondition(!addSpecialTokens)
        return try! peer.ask { $0.encode = text }.tokens!
    }

    func decode(tokens: [Int], skipSpecialTokens: Bool) -> String {
        precondition(skipSpecialTokens)
        return try! peer.ask { $0.decode = tokens }.text!
    }
}
