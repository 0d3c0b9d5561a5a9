import CryptoKit
import Foundation

/// A bundle that is not whole, or not the one that this app was made for.
public struct DamagedBundle: LocalizedError {
    public let errorDescription: String?

    init(_ message: String) {
        errorDescription = message
    }
}

/// Compares a bundle with its manifest, and the manifest with the SHA-256 that this app was made with.
public enum Integrity {
    private struct Manifest: Decodable {
        struct File: Decodable {
            let bytes: Int
            let sha256: String
        }

        let files: [String: File]
    }

    private static let manifestName = "manifest.json"
    private static let signatureName = "manifest.sig"
    private static let sealBytes = 82

    /// Checks every file's size, and its content unless `memory`, a file outside the bundle, says that this was done before.
    ///
    /// - Parameters:
    ///   - manifestSHA256: of the one manifest that is accepted; nil accepts any that is whole
    ///   - progress: gets the part of the bytes that were read, from 0 to 1, where the content is checked
    public static func check(
        _ bundle: URL,
        manifestSHA256: String?,
        memory: URL? = nil,
        progress: (Double) -> Void = { _ in }
    ) throws {
        guard let manifest = try? Data(contentsOf: bundle.appending(path: manifestName)) else {
            throw DamagedBundle("\(manifestName) is missing")
        }
        let digest = hex(SHA256.hash(data: manifest))
        if let manifestSHA256, digest != manifestSHA256 {
            throw DamagedBundle("\(manifestName) is not of the bundle that this app was made for")
        }
        guard isSealed(manifest) else { throw DamagedBundle("\(manifestName) was changed") }
        let seen = memory.flatMap { try? String(contentsOf: $0, encoding: .utf8) } == digest
        try checkFiles(bundle, manifest: manifest, contents: !seen, progress)
        if !seen, let memory {
            try Data(digest.utf8).write(to: memory)
        }
    }

    /// Whether a manifest ends with the SHA-256 of what stands before its last line.
    static func isSealed(_ manifest: Data) -> Bool {
        guard manifest.count >= sealBytes else { return false }
        let head = manifest.prefix(manifest.count - sealBytes)
        return manifest.suffix(sealBytes) == Data(",\n \"sha256\": \"\(hex(SHA256.hash(data: head)))\"\n}\n".utf8)
    }

    private static func checkFiles(_ bundle: URL, manifest: Data, contents: Bool, _ progress: (Double) -> Void) throws {
        guard let files = try? JSONDecoder().decode(Manifest.self, from: manifest).files else {
            throw DamagedBundle("\(manifestName) names no files")
        }
        for name in try held(by: bundle) where name != manifestName && name != signatureName && files[name] == nil {
            throw DamagedBundle("\(name) is not part of the bundle")
        }
        let all = max(1, files.values.reduce(0) { $0 + Double($1.bytes) })
        var read = 0
        for (name, entry) in files {
            guard !name.split(separator: "/").contains("..") else { throw DamagedBundle("\(name) lies outside the bundle") }
            let file = bundle.appending(path: name)
            guard let size = try? file.resourceValues(forKeys: [.fileSizeKey]).fileSize else {
                throw DamagedBundle("\(name) is missing")
            }
            guard size == entry.bytes else { throw DamagedBundle("\(name) has \(size) bytes, not \(entry.bytes)") }
            guard contents else { continue }
            let digest = try sha256(of: file) { count in
                read += count
                progress(Double(read) / all)
            }
            guard digest == entry.sha256 else { throw DamagedBundle("\(name) was changed") }
        }
    }

    private static func held(by bundle: URL) throws -> [String] {
        let root = bundle.resolvingSymlinksInPath().path(percentEncoded: false)
        let found = FileManager.default.enumerator(at: bundle, includingPropertiesForKeys: [.isRegularFileKey])
        return try (found?.compactMap { $0 as? URL } ?? []).filter { url in
            try url.resourceValues(forKeys: [.isRegularFileKey]).isRegularFile == true
        }.map { url in
            let path = url.resolvingSymlinksInPath().path(percentEncoded: false)
            return String(path.dropFirst(root.count)).trimmingCharacters(in: CharacterSet(charactersIn: "/"))
        }
    }

    private static func sha256(of file: URL, _ progress: (Int) -> Void) throws -> String {
        let handle = try FileHandle(forReadingFrom: file)
        defer { try? handle.close() }
        var hash = SHA256()
        while let part = try handle.read(upToCount: 1 << 20), !part.isEmpty {
            hash.update(data: part)
            progress(part.count)
        }
        return hex(hash.finalize())
    }

    private static func hex(_ digest: SHA256.Digest) -> String {
        digest.map { String(format: "%02x", $0) }.joined()
    }
}
