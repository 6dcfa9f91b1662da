// The target on the GPU: prefix, exit head and suffix as functions of one package.
//
// Keys and values are states of the programs. Every call names the position it starts at and rows
// beyond are written over, so tokens are taken back by naming an earlier position. A state that is
// made for `prefix` is the one of `prefix_prefill` too; likewise for `suffix`.

import CoreML
import Foundation

/// What crosses the token channel: the exit head's candidates for every row of a window.
public struct ExitSignal: Sendable {
    /// Best first.
    public let ids: [[Int]]
    public let logprobs: [[Float]]
}

/// One lane: an actor does one thing at a time.
public actor TargetLane {
    public nonisolated let context: Int
    public nonisolated let vocabulary: Int
    private let programs: [String: Program]
    private let prefixState, suffixState: MLState
    private let widths: [Int]
    private let chunk: Int
    private var fed: (hidden: MLFeatureValue, start: Int, rows: Int)?

    public init(_ bundle: ModelBundle, units: MLComputeUnits = .cpuAndGPU) async throws {
        let target = bundle.manifest.target
        let functions = bundle.manifest.packages[target.prefix]!.functions
        let compiled = try await Program.compile(bundle.folder.appending(path: target.prefix))
        var programs: [String: Program] = [:]
        for name in functions.keys {
            programs[name] = try await Program(compiled, function: name, units: units)
        }
        self.programs = programs
        prefixState = programs["prefix"]!.model.makeState()
        suffixState = programs["suffix"]!.model.makeState()
        context = target.model.context
        vocabulary = target.model.vocabulary
        widths = functions["prefix"]!.shapes("input_ids").map { $0[1] }.sorted()
        chunk = functions["prefix_prefill"]!.shapes("input_ids")[0][1]
    }

    /// Feed a prompt; the logits of its last row.
    public func prefill(_ tokens: [Int]) throws -> [Float] {
        var logits: [Float] = []
        for first in stride(from: 0, to: tokens.count, by: chunk) {
            let part = Array(tokens[first..<min(first + chunk, tokens.count)])
            let start = value([first], shape: [1])
            let ids = value(padded(part, to: chunk), shape: [1, chunk])
            let below = try programs["prefix_prefill"]!
                .run(["input_ids": ids, "start": start], state: prefixState)
            let last = value([part.count - 1], shape: [1])
            let hidden = below.featureValue(for: "hidden")!
            let above = try programs["suffix_prefill"]!
                .run(["hidden": hidden, "start": start, "rows": last], state: suffixState)
            logits = above.halves("logits").scalars.map(Float.init)
        }
        return logits
    }

    /// Feed a window through layers 1..E, and name candidates for what may follow each row.
    public func prefix(_ window: [Int], start: Int) throws -> ExitSignal {
        let width = widths.first { $0 >= window.count }!
        let ids = value(padded(window, to: width), shape: [1, width])
        let below = try programs["prefix"]!
            .run(["input_ids": ids, "start": value([start], shape: [1])], state: prefixState)
        let hidden = below.featureValue(for: "hidden")!
        fed = (hidden, start, window.count)
        let named = try programs["exit"]!.run(["hidden": hidden])
        let ids2D = named.integers("exit_ids"), logprobs = named.halves("exit_logprobs")
        return ExitSignal(
            ids: (0..<window.count).map { ids2D[0][$0].scalars.map(Int.init) },
            logprobs: (0..<window.count).map { logprobs[0][$0].scalars.map(Float.init) }
        )
    }

    /// Take the last window through layers E+1..N: a row of logits for each of its tokens.
    public func suffix() throws -> [[Float]] {
        let fed = fed!
        let inputs = ["hidden": fed.hidden, "start": value([fed.start], shape: [1])]
        let logits = try programs["suffix"]!.run(inputs, state: suffixState).halves("logits")
        return (0..<fed.rows).map { logits[0][$0].scalars.map(Float.init) }
    }
}

func padded(_ tokens: [Int], to width: Int) -> [Int] {
    tokens + Array(repeating: 0, count: width - tokens.count)
}
