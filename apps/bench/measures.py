"""The statistics of a benchmark: records of answers in, figures out; nothing is measured here.

Spec-Bench's measures. The speed of an answer is its tokens over the seconds it took, prompt
included; a contender's speed is the mean over answers, and its speed-up that speed over the
reference's. The mean accepted length is tokens per pass of the target, not counting the first
token of a turn, which comes from the prompt.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirror_edge.apps.bench.tally import Tally

__all__ = ["BUDGETS", "Run", "complete", "figures"]

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
"""The values of R for which a hit rate is given."""
_DRAWS = 2000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Run:
    """One contender's answer to all turns of one question. Times are seconds."""

    question: int
    group: str
    repeat: int
    contender: str
    tokens: int
    seconds: float
    """From the question to the last token, all turns together."""
    first_token: float
    """From the first turn's question to its first token."""
    decode_tokens: int
    """Those after the first token of every turn."""
    decode_seconds: float
    tally: Tally
    said: tuple[int, ...]
    """The tokens themselves, to compare."""
    joules: float | None = None

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def complete(runs: Sequence[Run], contenders: Sequence[str]) -> list[Run]:
    """The runs of those rounds in which every contender answered."""
    rounds: dict[tuple[int, int], set[str]] = {}
    for run in runs:
        rounds.setdefault((run.question, run.repeat), set()).add(run.contender)
    return [run for run in runs if rounds[run.question, run.repeat] >= set(contenders)]


def figures(runs: Sequence[Run], contenders: Sequence[str], reference: str) -> dict[str, Any]:
    """`overall.<contender>` and `categories.<group>.<contender>`, of complete rounds.

    A figure that the runs do not determine is None.
    """
    groups = dict.fromkeys(run.group for run in runs)
    return {
        "overall": _all(runs, contenders, reference),
        "categories": {
            group: _all([run for run in runs if run.group == group], contenders, reference)
            for group in groups
        },
    }


def _all(runs: Sequence[Run], contenders: Sequence[str], reference: str) -> dict[str, Any]:
    own = {name: [run for run in runs if run.contender == name] for name in contenders}
    return {name: _figures(own[name], own[reference]) for name in contenders}


def _figures(runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, Any]:
    total = Tally.sum(run.tally for run in runs)
    speed = statistics.fmean(run.speed for run in runs)
    decoding = [run.decode_tokens / run.decode_seconds for run in runs if run.decode_seconds > 0]
    tokens = sum(run.tokens for run in runs)
    joules = [run.joules for run in runs if run.joules is not None]
    same = {(run.question, run.repeat): run.said for run in reference}
    return {
        "tokens_per_second": speed,
        "mean_accepted_tokens": _ratio(total.committed, total.passes),
        "speedup": speed / statistics.fmean(run.speed for run in reference),
        "speedup_interval": interval(runs, reference),
        "tokens_per_second_deviation": _deviation(runs),
        "decode_tokens_per_second": statistics.fmean(decoding) if decoding else None,
        "time_to_first_token_ms": 1e3 * statistics.median(run.first_token for run in runs),
        "answers": len(runs),
        "tokens": tokens,
        "same_text": sum(same[r.question, r.repeat] == r.said for r in runs) / len(runs),
        "acceptance_by_position": [
            total.accepted[place] / total.judged[place] for place in sorted(total.judged)
        ],
        "hit_rate": _ratio(total.hits, total.looked_up),
        "hit_rate_by_branches": hit_rates(total),
        "overlap": _ratio(total.hidden, total.rollout),
        "rollout_forwards_per_step": _ratio(total.rollout_forwards, total.looked_up),
        "exposed_draft_ms_per_step": _ms(total.exposed, total),
        "host_ms_per_step": _ms(total.host, total),
        "joules_per_token": _ratio(sum(joules), tokens) if len(joules) == len(runs) else None,
    }


def hit_rates(total: Tally) -> dict[str, float]:
    """By R: how often the outcome was among the R best roots, drafted for or not."""
    if not total.looked_up:
        return {}
    return {
        str(budget): sum(n for rank, n in total.ranks.items() if rank < budget) / total.looked_up
        for budget in BUDGETS
    }


def interval(runs: Sequence[Run], reference: Sequence[Run]) -> list[float] | None:
    """The speed-up's 95 % confidence interval: a bootstrap over questions and their repeats.

    The two answers of a round stay together. None for fewer than two rounds.
    """
    speeds = {(run.question, run.repeat): run.speed for run in reference}
    by_question: dict[int, list[tuple[float, float]]] = {}
    for run in runs:
        pair = run.speed, speeds[run.question, run.repeat]
        by_question.setdefault(run.question, []).append(pair)
    rounds = list(by_question.values())
    counts = np.array([len(pairs) for pairs in rounds])
    if counts.sum() < 2:
        return None
    pairs = np.zeros((len(rounds), counts.max(), 2))
    for index, found in enumerate(rounds):
        pairs[index, : len(found)] = found
    draw = np.random.default_rng(0)
    questions = draw.integers(0, len(rounds), (_DRAWS, len(rounds), 1))
    repeats = draw.random((_DRAWS, len(rounds), counts.max())) * counts[questions]
    means = pairs[questions, repeats.astype(int)].mean(axis=(1, 2))
    ratios = means[:, 0] / means[:, 1]
    low, high = np.percentile(ratios, _INTERVAL)
    return [float(low), float(high)]


def _deviation(runs: Sequence[Run]) -> float | None:
    """The standard deviation, over the repeats, of their speeds; None for a single repeat."""
    repeats: dict[int, list[float]] = {}
    for run in runs:
        repeats.setdefault(run.repeat, []).append(run.speed)
    if len(repeats) < 2:
        return None
    return statistics.stdev(statistics.fmean(speeds) for speeds in repeats.values())


def _ms(seconds: float, total: Tally) -> float | None:
    """Milliseconds per step; None for a contender that does not report where its time went."""
    return _ratio(1e3 * seconds, total.passes) if total.host else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
