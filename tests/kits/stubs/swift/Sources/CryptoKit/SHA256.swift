// CryptoKit's SHA256 (FIPS 180-4), as far as the kits use it.
import Foundation

public struct SHA256Digest: Sequence, Equatable, Sendable {
    let bytes: [UInt8]

    public func makeIterator() -> IndexingIterator<[UInt8]> { bytes.makeIterator() }
}

public struct SHA256: Sendable {
    public typealias Digest = SHA256Digest

    private var state: [UInt32] = [
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    ]
    private var rest: [UInt8] = []
    private var count = 0

    public init() {}

    public static func hash<D: DataProtocol>(data: D) -> SHA256Digest {
        var hash = SHA256()
        hash.update(data: data)
        return hash.finalize()
    }

    public mutating func update<D: DataProtocol>(data: D) {
        count += data.count
        rest += data
        let whole = rest.count / 64 * 64
        rest.withUnsafeBufferPointer { bytes in
            for start in stride(from: 0, to: whole, by: 64) { mix(&state, bytes, start) }
        }
        rest.removeFirst(whole)
    }

    public func finalize() -> SHA256Digest {
        var last = self
        var end: [UInt8] = [0x80]
        while (count + end.count + 8) % 64 != 0 { end.append(0) }
        end += (0 ..< 8).map { UInt8(truncatingIfNeeded: (count * 8) >> (56 - 8 * $0)) }
        last.update(data: end)
        return SHA256Digest(bytes: last.state.flatMap { word in (0 ..< 4).map { UInt8(truncatingIfNeeded: word >> (24 - 8 * $0)) } })
    }
}

private func mix(_ state: inout [UInt32], _ bytes: UnsafeBufferPointer<UInt8>, _ start: Int) {
    withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 64) { w in
        for i in 0 ..< 64 {
            if i < 16 {
                let at = start + 4 * i
                w[i] = UInt32(bytes[at]) << 24 | UInt32(bytes[at + 1]) << 16 | UInt32(bytes[at + 2]) << 8 | UInt32(bytes[at + 3])
            } else {
                let a = w[i - 15], b = w[i - 2]
                let small = turn(a, 7) ^ turn(a, 18) ^ (a >> 3)
                let large = turn(b, 17) ^ turn(b, 19) ^ (b >> 10)
                w[i] = w[i - 16] &+ small &+ w[i - 7] &+ large
            }
        }
        var (a, b, c, d) = (state[0], state[1], state[2], state[3])
        var (e, f, g, h) = (state[4], state[5], state[6], state[7])
        for i in 0 ..< 64 {
            let choice = (e & f) ^ (~e & g)
            let one = h &+ (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) &+ choice &+ constants[i] &+ w[i]
            let two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) &+ ((a & b) ^ (a & c) ^ (b & c))
            (h, g, f, e, d, c, b, a) = (g, f, e, d &+ one, c, b, a, one &+ two)
        }
        for (i, value) in [a, b, c, d, e, f, g, h].enumerated() { state[i] = state[i] &+ value }
    }
}

private func turn(_ x: UInt32, _ by: UInt32) -> UInt32 { x >> by | x << (32 - by) }

/// The first 32 bits of the fractions of the cube roots of the first 64 primes, exact by integer search.
private let constants: [UInt32] = {
    let primes = (2 ..< 312).filter { n in !(2 ..< n).contains { n % $0 == 0 } }
    return primes.map { prime in
        let root = Foundation.cbrt(Double(prime))
        return UInt32(truncatingIfNeeded: UInt64((root - root.rounded(.down)) * 4294967296))
    }
}()
