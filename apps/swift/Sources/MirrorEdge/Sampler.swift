// One seed, one text: the token at position p is argmax(logit / T + noise(seed, p, v)).
//
// The same hash as mirror_edge/sampling.py, so target, draft and exit head share the noise, and an
// answer here is the answer there, up to rounding.

import Foundation

public struct Sampler: Sendable {
    public let temperature: Float
    public let seed: UInt64

    public init(temperature: Float = 0, seed: UInt64 = 0) {
        self.temperature = temperature
        self.seed = seed
    }

    public func choose(_ logits: [Float], position: Int) -> Int {
        let scores = scores(Array(logits.indices), logits, position: position)
        return scores.indices.max { scores[$0] < scores[$1] || (scores[$0] == scores[$1] && $0 > $1) }!
    }

    /// What tokens compete with: log p at temperature 0, else log p / T + noise.
    public func scores(_ ids: [Int], _ logits: [Float], position: Int) -> [Float] {
        guard temperature > 0 else { return logits }
        let key = splitmix(splitmix(seed) ^ splitmix(UInt64(position) ^ 0x5_DEEC_E66D))
        let low = UInt32(truncatingIfNeeded: key), high = UInt32(truncatingIfNeeded: key >> 32)
        return zip(ids, logits).map { id, logit in
            let x = mix(mix(UInt32(id) &+ low) ^ high)
            let w = (Double(x) + 0.5) * 0x1p-32
            return logit / temperature - log(-Float(log(1 - w)))
        }
    }
}

private func splitmix(_ seed: UInt64) -> UInt64 {
    var x = seed &+ 0x9E37_79B9_7F4A_7C15
    x = (x ^ (x >> 30)) &* 0xBF58_476D_1CE4_E5B9
    x = (x ^ (x >> 27)) &* 0x94D0_49BB_1331_11EB
    return x ^ (x >> 31)
}

private func mix(_ value: UInt32) -> UInt32 {
    var x = value ^ (value >> 16)
    x = x &* 0x7FEB_352D
    x ^= x >> 15
    x = x &* 0x846C_A68B
    return x ^ (x >> 16)
}
