/// Tokens in, completed text out: a character that is split over several tokens comes with its last one.
struct TextStream {
    let decode: ([Int]) -> String
    private var shown: [Int] = []
    private var pending: [Int] = []

    init(decode: @escaping ([Int]) -> String) {
        self.decode = decode
    }

    /// The text that this token completes; often empty.
    mutating func step(_ token: Int) -> String {
        pending.append(token)
        let before = decode(shown)
        let all = decode(shown + pending)
        // by scalars: two texts that differ in their scalars can be equal as characters
        let text = all.unicodeScalars.starts(with: before.unicodeScalars)
            ? String(String.UnicodeScalarView(all.unicodeScalars.dropFirst(before.unicodeScalars.count)))
            : decode(pending)
        if text.unicodeScalars.last == "\u{FFFD}" { return "" }
        shown = text.isEmpty ? shown + pending : pending // after a special token, which shows nothing, no text begins anew
        pending = []
        return text
    }
}
