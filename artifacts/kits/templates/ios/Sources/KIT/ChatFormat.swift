import Foundation

/// One turn of a conversation. The role is `system`, `user` or `assistant`.
public struct Message: Sendable {
    public let role: String
    public let content: String

    public init(role: String, content: String) {
        self.role = role
        self.content = content
    }
}

/// The model's chat template: what stands before and after each message.
public struct ChatFormat: Sendable {
    /// The start of a conversation with a system message, and of one without.
    let begin, `default`: String
    let roles: [String: (before: String, after: String)]
    /// What the model continues.
    let answer: String
    /// Whether white space around a message is dropped.
    let strips: Bool

    /// The prompt up to where the assistant's answer starts. The role of every message must be one that the model knows.
    public func render(_ messages: [Message]) -> String {
        var prompt = messages.first?.role == "system" ? begin : `default`
        for message in messages {
            guard let (before, after) = roles[message.role] else {
                preconditionFailure("this model knows no role \(message.role)")
            }
            let space = CharacterSet(charactersIn: " \t\r\n")
            prompt += before + (strips ? message.content.trimmingCharacters(in: space) : message.content) + after
        }
        return prompt + answer
    }
}
