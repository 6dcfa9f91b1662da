// The draft on the Neural Engine: fixed shapes, and a cache that is handed in and out.
//
// Its rows see what `attention_bias` lets them see, so all branches of a rollout go through one
// forward. Main rows stand in the first slots of the cache, the branches of the last rollout behind
// them; when a branch comes true its rows are moved up to the main ones.

import CoreML
import Foundation

public struct Root: Hashable, Sendable {
    /// d1..d`row` are accepted…
    public let row: Int
    /// …and this comes next.
    public let token: Int
}

public struct Branch: Sendable {
    public let root: Root
    public let tokens: [Int]
}

public actor DraftLane {
    private let parts: [[String: Program]]
    private let width, chunk, vocabulary, context, slots, capacity: Int
    private let layers: [Int]
    private let heads, size: Int
    /// Keys and values of each part of the layers, [layers, heads, capacity, size].
    private var caches: [(keys: [Half], values: [Half])]
    private var rows: [Int] = []
    private var grown: [(after: Int, tokens: [Int], slots: [Int])] = []

    public init(_ bundle: ModelBundle, units: MLComputeUnits = .cpuAndNeuralEngine) async throws {
        let draft = bundle.manifest.draft!
        var parts: [[String: Program]] = [], layers: [Int] = []
        let names = bundle.manifest.packages.keys.filter { $0.hasPrefix("draft/") }.sorted()
        for name in names {
            let compiled = try await Program.compile(bundle.folder.appending(path: name))
            parts.append([
                "draft": try await Program(compiled, function: "draft", units: units),
                "draft_prefill": try await Program(compiled, function: "draft_prefill", units: units),
            ])
            layers.append(bundle.manifest.packages[name]!.functions["draft"]!.shapes("past_keys")[0][0])
        }
        let functions = bundle.manifest.packages[names[0]]!.functions
        self.parts = parts
        self.layers = layers
        width = functions["draft"]!.shapes("input_ids")[0][1]
        chunk = functions["draft_prefill"]!.shapes("input_ids")[0][1]
        capacity = functions["draft"]!.shapes("past_keys")[0][2]
        vocabulary = draft.model.vocabulary
        context = draft.model.context
        slots = draft.model.context + draft.branchRows
        heads = draft.model.kvHeads
        size = draft.model.headSize
        let row = self.heads * self.capacity * self.size
        caches = layers.map { count in
            let zeros = [Half](repeating: 0, count: count * row)
            return (zeros, zeros)
        }
    }

    /// Take `tokens` as the committed ones; rows that the cache shares with them are kept.
    public func prefill(_ tokens: [Int]) throws {
        settle(tokens)
        try feed(tokens)
    }

    /// Continue every root by `depth` tokens, all of them together.
    public func rollout(
        committed: [Int], drafted: [Int], roots: [Root], depth: Int, sampler: Sampler
    ) throws -> [Branch] {
        let trunk = Array((committed + drafted).prefix(context))
        settle(trunk)
        try feed(trunk)
        let depth = min(depth, context - committed.count - (roots.map(\.row).max() ?? 0) - 1)
        guard depth > 0 else { return [] }
        let kept = Array(roots.prefix(min((slots - trunk.count) / depth, width)))
        var tokens = kept.map { [$0.token] }
        var places = kept.map { _ in [Int]() }
        for step in 0..<depth {
            let start = trunk.count + step * kept.count
            // A row of a branch sees the main rows it continues and its own branch.
            let seen: [Set<Int>] = kept.indices.map { index in
                let after = committed.count + kept[index].row
                return Set(0..<min(after, trunk.count)).union(places[index])
            }
            let fed = tokens.map { $0[step] }
            let positions = kept.map { committed.count + $0.row + step }
            let logits = try forward(fed, positions, start: start) { row, slot in
                slot == start + row || seen[row].contains(slot)
            }
            for index in kept.indices {
                places[index].append(start + index)
                tokens[index].append(sampler.choose(logits![index], position: positions[index] + 1))
            }
        }
        grown = kept.indices.map {
            (committed.count + kept[$0].row, Array(tokens[$0].dropLast()), places[$0])
        }
        return kept.indices.map { Branch(root: kept[$0], tokens: Array(tokens[$0].dropFirst())) }
    }

    /// Make the main rows the longest stretch of `trunk` that the cache can spell.
    private func settle(_ trunk: [Int]) {
        let shared = zip(rows, trunk).prefix { $0 == $1 }.count
        var length = shared
        var best: (after: Int, tokens: [Int], slots: [Int])?
        for branch in grown where branch.after <= shared {
            let same = zip(branch.tokens, trunk.dropFirst(branch.after)).prefix { $0 == $1 }.count
            if branch.after + same > length {
                best = branch
                length = branch.after + same
            }
        }
        if let best {
            for (at, slot) in best.slots.prefix(length - best.after).enumerated() {
                move(slot, to: best.after + at)
            }
        }
        rows = Array(trunk.prefix(length))
        grown = []
    }

    /// Feed what is missing of `tokens` as plain causal rows.
    private func feed(_ tokens: [Int]) throws {
        while rows.count < tokens.count {
            let start = rows.count
            let missing = tokens.count - start
            let long = missing > width
            let part = Array(tokens[start..<start + min(missing, long ? chunk : width)])
            let positions = Array(start..<start + part.count)
            _ = try forward(part, positions, start: start, long: long) { $1 <= start + $0 }
            rows += part
        }
    }

    /// Feed rows into slots `start`…; their logits, but for the long program, which has no head.
    private func forward(
        _ tokens: [Int], _ positions: [Int], start: Int, long: Bool = false,
        sees: (_ row: Int, _ slot: Int) -> Bool
    ) throws -> [[Float]]? {
        let width = long ? chunk : width, function = long ? "draft_prefill" : "draft"
        let known = tokens.map { $0 < vocabulary ? $0 : 0 }
        var bias = [Half](repeating: -1e4, count: width * (capacity + width))
        for row in 0..<width {
            let line = row * (capacity + width)
            guard row < tokens.count else {
                bias[line + capacity + row] = 0  // padding sees itself, and nobody sees it
                continue
            }
            for slot in 0..<start where sees(row, slot) { bias[line + slot] = 0 }
            for other in 0...row where sees(row, start + other) { bias[line + capacity + other] = 0 }
        }
        var inputs = [
            "input_ids": value(padded(known, to: width), shape: [1, width]),
            "position_ids": value(padded(positions, to: width), shape: [width]),
            "attention_bias": value(bias, shape: [1, 1, width, capacity + width]),
        ]
        var logits: [[Float]]?
        for part in parts.indices {
            let shape = [layers[part], heads, capacity, size]
            inputs["past_keys"] = value(caches[part].keys, shape: shape)
            inputs["past_values"] = value(caches[part].values, shape: shape)
            let outputs = try parts[part][function]!.run(inputs)
            write(outputs, part: part, start: start, count: tokens.count, width: width)
            inputs["input_ids"] = nil
            inputs["hidden"] = outputs.featureValue(for: "residual")
            if outputs.featureValue(for: "logits") != nil {
                // [pieces, size, 1, width]: the first two axes together are the vocabulary.
                let scalars = outputs.halves("logits").scalars
                logits = tokens.indices.map { row in
                    (0..<vocabulary).map { Float(scalars[$0 * width + row]) }
                }
            }
        }
        return logits
    }

    private func write(
        _ outputs: any MLFeatureProvider, part: Int, start: Int, count: Int, width: Int
    ) {
        let keys = outputs.halves("keys").scalars, values = outputs.halves("values").scalars
        for line in 0..<layers[part] * heads {
            let from = line * width * size, to = (line * capacity + start) * size
            caches[part].keys.replaceSubrange(to..<to + count * size, with: keys[from..<from + count * size])
            caches[part].values
                .replaceSubrange(to..<to + count * size, with: values[from..<from + count * size])
        }
    }

    private func move(_ slot: Int, to place: Int) {
        guard slot != place else { return }
        for part in parts.indices {
            for line in 0..<layers[part] * heads {
                let from = (line * capacity + slot) * size, to = (line * capacity + place) * size
                for offset in 0..<size {
                    caches[part].keys[to + offset] = caches[part].keys[from + offset]
                    caches[part].values[to + offset] = caches[part].values[from + offset]
                }
            }
        }
    }
}
