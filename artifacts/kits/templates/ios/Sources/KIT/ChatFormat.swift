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
    /// Roles around whose messages white space is dropped.
    let strips: Set<String>

    /// What `trim` of a chat template drops: Python's white space.
    private static let whiteSpace = CharacterSet(
        charactersIn: "\u{9}\u{A}\u{B}\u{C}\u{D}\u{1C}\u{1D}\u{1E}\u{1F} \u{85}\u{A0}\u{1680}"
            + "\u{2000}\u{2001}\u{2002}\u{2003}\u{2004}\u{2005}\u{2006}\u{2007}\u{2008}\u{2009}"
            + "\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}"
    )

    /// The prompt up to where the assistant's answer starts. The role of every message must be one that the model knows.
    public func render(_ messages: [Message]) -> String {
        var prompt = messages.first?.role == "system" ? begin : `default`
        for message in messages {
            guard let (before, after) = roles[message.role] else {
                preconditionFailure("this model knows no role \(message.role)")
            }
            let content = message.content
            prompt += before + (strips.contains(message.role) ? content.trimmingCharacters(in: Self.whiteSpace) : content) + after
        }
        return prompt + answer
    }
}
