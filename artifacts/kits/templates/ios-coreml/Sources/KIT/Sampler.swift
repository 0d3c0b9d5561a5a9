import Foundation

/// Chooses the next token. Temperature 0 takes the most likely one; `topK` 0 and `topP` 1 set no limit. The same seed makes the
/// same choices.
public struct Sampler: Sendable {
    let temperature: Double
    let topK: Int
    let topP: Double
    private var state: UInt64

    public init(temperature: Double = 0, topK: Int = 0, topP: Double = 1, seed: UInt64 = .random(in: .min ... .max)) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        state = seed
    }

    /// The token for logits, one for each token of the vocabulary. Ties go to the lower one.
    public mutating func choose(_ logits: [Float]) -> Int {
        guard temperature > 0 else {
            return logits.indices.reduce(0) { logits[$1] > logits[$0] ? $1 : $0 }
        }
        var order = logits.indices.sorted { logits[$0] != logits[$1] ? logits[$0] > logits[$1] : $0 < $1 }
        if topK > 0 { order = Array(order.prefix(topK)) }
        let highest = Double(logits[order[0]])
        let weights = order.map { exp((Double(logits[$0]) - highest) / temperature) }
        let enough = topP * weights.reduce(0, +)
        var kept = 0
        var mass = 0.0
        while kept < order.count && (kept == 0 || mass < enough) {
            mass += weights[kept]
            kept += 1
        }
        var target = uniform() * mass
        for i in 0 ..< kept {
            target -= weights[i]
            if target < 0 { return order[i] }
        }
        return order[kept - 1]
    }

    /// In [0, 1): SplitMix64, whose numbers are the same on every platform.
    private mutating func uniform() -> Double {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        z ^= z >> 31
        return Double(z >> 11) * 0x1p-53
    }
}
