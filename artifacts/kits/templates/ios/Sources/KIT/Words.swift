import Foundation

/// Texts and questions as words that an index of documents knows.
enum Words {
    /// Letters of languages that write no spaces, or join words: Thai, Lao, Burmese, Khmer, Japanese, Chinese, Korean.
    private static let unspaced = expression(
        "[\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3040-\\u30ff\\u3400-\\u4dbf\\u4e00-\\u9fff\\uac00-\\ud7af"
            + "\\uf900-\\ufaff\\U00020000-\\U0003ffff]+"
    )
    /// What one may write or leave out: accents, vowel signs of Hebrew and Arabic, hyphens that show at a line's end alone.
    private static let marks = expression(
        "[\\u00ad\\u0300-\\u036f\\u0591-\\u05bd\\u05bf\\u05c1\\u05c2\\u05c4\\u05c5\\u05c7\\u0610-\\u061a\\u0640"
            + "\\u064b-\\u065f\\u0670\\u06d6-\\u06dc\\u06df-\\u06e8\\u06ea-\\u06ed]+"
    )
    private static let thousands = expression(
        "(?<![\\p{Nd},.])\\p{Nd}{1,3}(?:,\\p{Nd}{3})+(?![\\p{Nd},])"
    )
    private static let word = expression("[\\p{L}\\p{N}]+")

    /// Words that a question has whatever it is about.
    private static let stop = Set("""
«stop_words | join(" ") | wordwrap(100) | indent(8, first=true)»
        """.split(whereSeparator: \.isWhitespace).map(String.init))

    /// Without accents. Where no spaces are written, every two neighbours become a word. Numbers stand there without commas too.
    static func spaced(_ text: String) -> String {
        let bare = replaced(text.decomposedStringWithCanonicalMapping, marks) { _ in "" }.precomposedStringWithCanonicalMapping
        let numbered = replaced(bare, thousands) { "\($0) \($0.replacingOccurrences(of: ",", with: ""))" }
        return replaced(numbered, unspaced) { " \(pairs($0).joined(separator: " ")) " }
    }

    /// The words of a question, each once, in their order; without those that any question has, where others are left.
    static func of(_ question: String) -> [String] {
        let text = spaced(question)
        let every = matches(text, word).map { text[$0].lowercased() }
        let told = every.filter { !stop.contains($0) }
        var seen: Set<String> = []
        return Array((told.isEmpty ? every : told).filter { seen.insert($0).inserted }.prefix(«most_words»))
    }

    private static func pairs(_ run: String) -> [String] {
        let letters = run.unicodeScalars.map { String($0) }
        return letters.count == 1 ? letters : zip(letters, letters.dropFirst()).map { $0 + $1 }
    }

    private static func expression(_ pattern: String) -> NSRegularExpression {
        try! NSRegularExpression(pattern: pattern) // a test compiles each
    }

    private static func matches(_ text: String, _ pattern: NSRegularExpression) -> [Range<String.Index>] {
        let whole = NSRange(text.startIndex ..< text.endIndex, in: text)
        // `Range(_:in:)` has none for a match that begins or ends at a mark, which belongs to the letter before it
        return pattern.matches(in: text, range: whole).map {
            String.Index(utf16Offset: $0.range.lowerBound, in: text) ..< String.Index(utf16Offset: $0.range.upperBound, in: text)
        }
    }

    private static func replaced(_ text: String, _ pattern: NSRegularExpression, by: (String) -> String) -> String {
        var made = ""
        var last = text.startIndex
        for range in matches(text, pattern) {
            made += text[last ..< range.lowerBound] + by(String(text[range]))
            last = range.upperBound
        }
        return made + text[last...]
    }
}
