// The step loop: while the target's suffix decides, the draft prepares for every outcome.

import Foundation

public struct Speculation: Sendable {
    /// γ: draft tokens a window.
    public var window = 3
    /// κ: outcomes prepared for at each row.
    public var candidates = 4
    /// R: outcomes prepared for in all.
    public var branches = 8

    public init() {}
}

/// The tokens of an answer, step by step.
public func decode(
    _ prompt: [Int], target: TargetLane, draft: DraftLane, sampler: Sampler,
    endsWith eos: Set<Int>, upTo newTokens: Int, speculation: Speculation = Speculation()
) -> AsyncThrowingStream<[Int], any Error> {
    AsyncThrowingStream { stream in
        let task = Task {
            do {
                try await answer(
                    prompt, target, draft, sampler, eos, newTokens, speculation
                ) { stream.yield($0) }
                stream.finish()
            } catch {
                stream.finish(throwing: error)
            }
        }
        stream.onTermination = { _ in task.cancel() }
    }
}

private func answer(
    _ prompt: [Int], _ target: TargetLane, _ draft: DraftLane, _ sampler: Sampler,
    _ eos: Set<Int>, _ newTokens: Int, _ speculation: Speculation, _ say: ([Int]) -> Void
) async throws {
    var tokens = prompt
    let limit = min(prompt.count + newTokens, target.context)
    async let warm: Void = draft.prefill(prompt)
    let first = sampler.choose(try await target.prefill(prompt), position: prompt.count)
    tokens.append(first)
    say([first])
    try await warm
    var drafted: [Int]?
    var agreed = 1, judged = 2

    while tokens.count < limit, !eos.contains(tokens.last!) {
        try Task.checkCancellation()
        let depth = min(speculation.window, limit - tokens.count - 1)
        // d1…dγ: prepared by the step before, or drafted now from what is committed.
        if drafted == nil, depth > 0 {
            let (said, last) = (Array(tokens.dropLast()), tokens.last!)
            drafted = try await draft.rollout(
                committed: said, drafted: [], roots: [Root(row: 0, token: last)],
                depth: depth, sampler: sampler
            ).first?.tokens
        }
        let window = Array((drafted ?? []).prefix(max(0, depth)))

        // 1. Prefix: layers 1…E, and the exit head's candidates, which are all that the draft needs.
        let signal = try await target.prefix([tokens.last!] + window, start: tokens.count - 1)

        // 2. At once: the suffix on the GPU, and on the Neural Engine a branch for every outcome.
        let roots = chooseRoots(
            signal, window, position: tokens.count, agreement: Float(agreed) / Float(judged),
            speculation, sampler
        )
        let committed = tokens
        async let logits = target.suffix()
        async let prepared = draft.rollout(
            committed: committed, drafted: window, roots: roots,
            depth: min(speculation.window, limit - tokens.count - 2), sampler: sampler
        )

        // 3. Verify: accept while the target says the very same token.
        let rows = try await logits
        var accepted = 0
        var said = sampler.choose(rows[0], position: tokens.count)
        while accepted < window.count, said == window[accepted] {
            accepted += 1
            said = sampler.choose(rows[accepted], position: tokens.count + accepted)
        }
        agreed += accepted
        judged += min(accepted + 1, window.count)

        // 4. Look the outcome up. A hit is the next window's draft, with no draft time spent on it.
        let outcome = Root(row: accepted, token: said)
        drafted = try await prepared.first { $0.root == outcome }?.tokens
        var step = Array((window.prefix(accepted) + [said]).prefix(limit - tokens.count))
        if let end = step.firstIndex(where: eos.contains) { step = Array(step[...end]) }
        tokens += step
        say(step)
    }
}

/// The outcomes worth preparing for, likeliest first: that d1…dj are accepted, that d_{j+1} is not,
/// and that the token comes instead.
private func chooseRoots(
    _ signal: ExitSignal, _ drafted: [Int], position: Int, agreement: Float,
    _ speculation: Speculation, _ sampler: Sampler
) -> [Root] {
    var ranked: [(chance: Float, root: Root)] = []
    var reach: Float = 1
    for row in signal.ids.indices {
        let ids = signal.ids[row]
        let scores = sampler.scores(ids, signal.logprobs[row], position: position + row)
        let best = scores.max() ?? 0
        let total = scores.reduce(Float(0)) { $0 + exp($1 - best) }
        let order = ids.indices.sorted { scores[$0] > scores[$1] }.prefix(speculation.candidates + 1)
        var found = order.map { (token: ids[$0], chance: exp(scores[$0] - best) / total) }
        var share = reach
        if row < drafted.count, let last = found.last {
            let seen = found.first { $0.token == drafted[row] }?.chance ?? last.chance
            let accepted = max(seen, agreement)
            share *= (1 - accepted) / max(1 - seen, 1e-9)
            reach *= accepted
            found.removeAll { $0.token == drafted[row] }
        }
        for candidate in found.prefix(speculation.candidates) {
            ranked.append((share * candidate.chance, Root(row: row, token: candidate.token)))
        }
    }
    return ranked.sorted { $0.chance > $1.chance }.prefix(speculation.branches).map(\.root)
}
