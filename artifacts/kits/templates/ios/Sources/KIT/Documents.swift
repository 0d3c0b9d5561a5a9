import Foundation
import SQLite3

/// A part of a document.
public struct Passage: Equatable, Sendable {
    /// By its path in the folder of documents.
    public let file: String
    /// Where in the file, such as `lines 3-9`.
    public let place: String
    /// With those above it.
    public let heading: String
    public let text: String

    /// Where it stands, for people.
    public var source: String { [file, place, heading].filter { !$0.isEmpty }.joined(separator: ", ") }
}

/// A file that is no index of documents, or is damaged.
public struct BadIndex: LocalizedError {
    public let errorDescription: String?
}

/// The documents in an index that `pocketphi index` made. It may be used from every thread.
///
/// Passages are found by the words of a question: the first 40 by BM25 are put in the order of BM25 · c², where c is the part of
/// the question's words that a passage has, each weighted by how rare it is.
public final class Documents: @unchecked Sendable { // SQLite itself lets one thread in at a time
    private let database: OpaquePointer
    private let name: String
    private let passages: Int

    /// Throws `BadIndex`, as `search` does.
    public init(index: URL) throws {
        name = index.path
        var opened: OpaquePointer?
        guard sqlite3_open_v2(name, &opened, SQLITE_OPEN_READONLY | SQLITE_OPEN_FULLMUTEX, nil) == SQLITE_OK, let opened else {
            sqlite3_close(opened)
            throw BadIndex(errorDescription: "\(name): cannot be opened; make it with 'pocketphi index'")
        }
        database = opened
        do {
            passages = try Self.checked(opened, name)
        } catch {
            sqlite3_close(opened)
            throw error
        }
    }

    deinit {
        sqlite3_close(database)
    }

    /// The best passages for a question, the best one first; a text that stands in several files comes once.
    public func search(_ question: String, most: Int = «most_passages») throws -> [Passage] {
        let asked = Words.of(question)
        let weights = try telling(asked)
        let ranked = try ranked(asked, weights)
        var covered: [Int64: Double] = [:]
        for (word, weight) in weights {
            for row in try having(word, ranked.keys) { covered[row, default: 0] += weight }
        }
        let order = ranked.map { row, rank in (row: row, value: rank * covered[row, default: 0] * covered[row, default: 0]) }
            .sorted { ($1.value, $0.row) < ($0.value, $1.row) }
        var found: [Passage] = []
        for (row, _) in order where found.count < most {
            let passage = try passage(row)
            if !found.contains(where: { $0.text == passage.text }) { found.append(passage) }
        }
        return found
    }

    /// Those of the words that tell passages apart, with their inverse document frequency; all where none does.
    private func telling(_ words: [String]) throws -> [(word: String, weight: Double)] {
        let limit = passages >= «few» ? passages / «common» : passages
        let counts = try words.map { try (word: $0, count: count($0, limit + 1)) }
        let kept = counts.filter { 1 ... max(limit, 1) ~= $0.count }
        return (kept.isEmpty ? counts : kept).map { word, count in
            (word, log1p((Double(passages - count) + 0.5) / (Double(count) + 0.5)))
        }
    }

    private func count(_ word: String, _ most: Int) throws -> Int {
        let sql = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT \(most))"
        return try rows(sql, quoted(word)) { Int(sqlite3_column_int64($0, 0)) }.first ?? 0
    }

    /// The first passages by BM25, with it.
    private func ranked(_ asked: [String], _ weights: [(word: String, weight: Double)]) throws -> [Int64: Double] {
        let telling = Set(weights.map(\.word))
        let pairs = zip(asked, asked.dropFirst()).filter { telling.contains($0) || telling.contains($1) }.map { "\($0) \($1)" }
        let wanted = (weights.map(\.word) + pairs).map(quoted).joined(separator: " OR ")
        if wanted.isEmpty { return [:] }
        let sql = "SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT «looked_at»"
        let found = try rows(sql, wanted) { (sqlite3_column_int64($0, 0), -sqlite3_column_double($0, 1)) }
        return Dictionary(uniqueKeysWithValues: found)
    }

    private func having(_ word: String, _ among: some Collection<Int64>) throws -> [Int64] {
        let numbers = among.map { String($0) }.joined(separator: ", ")
        let sql = "SELECT rowid FROM words WHERE words MATCH ? AND rowid IN (\(numbers))"
        return try rows(sql, quoted(word)) { sqlite3_column_int64($0, 0) }
    }

    private func passage(_ row: Int64) throws -> Passage {
        let found = try rows("SELECT file, place, heading, text FROM passage WHERE id = \(row)") {
            Passage(file: Self.text($0, 0), place: Self.text($0, 1), heading: Self.text($0, 2), text: Self.text($0, 3))
        }
        guard let first = found.first else { throw Self.damaged(name) }
        return first
    }

    private func rows<T>(_ sql: String, _ argument: String? = nil, take: (OpaquePointer) -> T) throws -> [T] {
        try Self.rows(database, name, sql, argument, take: take)
    }

    private func quoted(_ word: String) -> String { "\"\(word)\"" }

    /// How many passages the index has. Throws `BadIndex` for what is none.
    private static func checked(_ database: OpaquePointer, _ name: String) throws -> Int {
        for guarding in ["trusted_schema = OFF", "cell_size_check = ON"] {
            _ = try rows(database, name, "PRAGMA \(guarding)") { _ in }
        }
        let application = try rows(database, name, "PRAGMA application_id") { sqlite3_column_int64($0, 0) }
        guard application == [«application»] else {
            throw BadIndex(errorDescription: "\(name): is no index; make it with 'pocketphi index'")
        }
        let about = try rows(database, name, "SELECT key, value FROM about LIMIT 100") { (text($0, 0), text($0, 1)) }
        let said = Dictionary(about) { first, _ in first }
        guard said["format"] == "«index_format»", let passages = said["passages"].flatMap({ Int($0) }), passages >= 0 else {
            let wanted = "expected an index of format «index_format», as this version of 'pocketphi index' makes it"
            throw BadIndex(errorDescription: "\(name): \(wanted)")
        }
        return passages
    }

    private static func rows<T>(
        _ database: OpaquePointer, _ name: String, _ sql: String, _ argument: String? = nil, take: (OpaquePointer) -> T
    ) throws -> [T] {
        var made: OpaquePointer?
        guard sqlite3_prepare_v2(database, sql, -1, &made, nil) == SQLITE_OK, let statement = made else { throw damaged(name) }
        defer { sqlite3_finalize(statement) }
        if let argument {
            let copied = unsafeBitCast(-1, to: sqlite3_destructor_type.self) // SQLITE_TRANSIENT
            sqlite3_bind_text(statement, 1, argument, -1, copied)
        }
        var found: [T] = []
        while true {
            switch sqlite3_step(statement) {
            case SQLITE_ROW: found.append(take(statement))
            case SQLITE_DONE: return found
            default: throw damaged(name)
            }
        }
    }

    private static func text(_ statement: OpaquePointer, _ column: Int32) -> String {
        sqlite3_column_text(statement, column).map { String(cString: $0) } ?? ""
    }

    private static func damaged(_ name: String) -> BadIndex {
        BadIndex(errorDescription: "\(name): cannot be searched; make it again with 'pocketphi index'")
    }
}
