// A process in Python that holds a real model and its tokenizer, see `model_peer.py`: a line of JSON each way over two pipes.
import Foundation

public struct Question: Encodable, Sendable {
    public struct Input: Encodable, Sendable {
        let shape: [Int]
        let values: [Int32]

        public init(shape: [Int], values: [Int32]) {
            (self.shape, self.values) = (shape, values)
        }
    }

    public var encode: String?
    public var decode: [Int]?
    public var function: String?
    public var state: Int?
    public var inputs: [String: Input]?

    public init() {}
}

public struct Answer: Decodable, Sendable {
    let error: String?
    public let text: String?
    public let tokens: [Int]?
    public let state: Int?
    public let names: [String]?
    /// float32 each.
    public let logits: Data?
}

public struct PeerFailure: LocalizedError {
    public let errorDescription: String?
}

public final class Peer: @unchecked Sendable { // one question at a time, under the lock
    /// nil where there is none: what is asked here is a toy then.
    public static let shared = ProcessInfo.processInfo.environment["PEER"].map(Peer.init)

    private let lock = NSLock()
    private let questions: UnsafeMutablePointer<FILE>
    private let answers: UnsafeMutablePointer<FILE>

    private init(folder: String) {
        questions = fopen("\(folder)/questions", "w")!
        answers = fopen("\(folder)/answers", "r")!
    }

    public func ask(_ fill: (inout Question) -> Void) throws -> Answer {
        var question = Question()
        fill(&question)
        let line = try JSONEncoder().encode(question) + Data("\n".utf8)
        return try lock.withLock {
            _ = line.withUnsafeBytes { fwrite($0.baseAddress, 1, $0.count, questions) }
            fflush(questions)
            var text: UnsafeMutablePointer<CChar>?
            var room = 0
            defer { free(text) }
            let count = getline(&text, &room, answers)
            guard count > 0, let text else { throw PeerFailure(errorDescription: "the peer has gone") }
            let answer = try JSONDecoder().decode(Answer.self, from: Data(bytes: text, count: count))
            if let error = answer.error { throw PeerFailure(errorDescription: error) }
            return answer
        }
    }
}
