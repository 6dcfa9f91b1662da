"""The distribution is the target's, on hits and on misses.

20,000 answers under as many seeds, in `mirror` mode. Which step says the third token, and whether
its window was prepared for, depends on the noise of earlier positions alone (all roots are kept),
so within every context (first, second token) the third has the target's distribution on hits and
on misses apart. The tests pool a chi-square over the contexts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pytest

from mirror_edge.answer import Answer, Decoder
from mirror_edge.decode import decode
from mirror_edge.driving import drive
from mirror_edge.policy import Strategy
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.scripted import ScriptedDraft, ScriptedTarget, blend, random_language
from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.trace import Trace
from mirror_edge.verify import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCABULARY = 8
PROMPT = (3, 1)
TRUTH = random_language(1, VOCABULARY, sharpness=1.0)
DRAFT = blend(TRUTH, random_language(2, VOCABULARY, sharpness=1.0), 0.9)

Path = Literal["fresh", "hit", "miss"]
"""Where the third token's window came from: the first draft, a branch, or a draft after a miss."""


class Sample(NamedTuple):
    """The start of an answer."""

    tokens: tuple[int, int, int]
    path: Path


def sampled(seeds: Iterable[int]) -> list[Sample]:
    trace = Trace()
    clock = VirtualClock()
    lanes = [VirtualLane(name, trace, clock, lambda *_: 0.001) for name in ("target", "draft")]
    target = ScriptedTarget(TRUTH, DRAFT, VOCABULARY, context=32)
    drafter = ModelDrafter(ScriptedDraft(DRAFT, VOCABULARY, context=32, branch_rows=64))
    samples = []
    for seed in seeds:
        answer = Answer(
            on=Decoder(target, lanes[0], lanes[1], trace),
            drafter=drafter,
            tokens=list(PROMPT),
            plan=Strategy("mirror", 2, 1, None, 0),
            sampler=Sampler(Sampling(temperature=1.0, seed=seed), VOCABULARY),
            eos=frozenset(),
            limit=len(PROMPT) + 4,
        )
        said: list[int] = []
        steps = drive(decode(answer))
        for step in steps:
            before, said = len(said), [*said, *step.tokens]
            if len(said) >= 3:
                break
        steps.close()
        first = answer.stats.steps[0]
        assert not answer.stats.draft_losses
        path: Path = "fresh" if before == 1 else "hit" if first.hit else "miss"
        samples.append(Sample((said[0], said[1], said[2]), path))
    return samples


def probabilities(tokens: Sequence[int]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(TRUTH([*PROMPT, *tokens]).astype(np.float64))
    weights /= weights.sum()
    return weights


@dataclass
class ChiSquare:
    """Pearson's statistic, summed over independent tables."""

    statistic: float = 0.0
    freedom: int = 0

    def add(self, counts: NDArray[np.float64], chances: NDArray[np.float64]) -> None:
        """One table; cells that expect fewer than 5 are pooled."""
        expected = counts.sum() * chances
        rare = expected < 5
        if rare.any():
            counts = np.append(counts[~rare], counts[rare].sum())
            expected = np.append(expected[~rare], expected[rare].sum())
            if expected[-1] < 5 and len(expected) > 1:
                counts, expected = (np.append(a[1:-1], a[0] + a[-1]) for a in (counts, expected))
        if len(expected) > 1:
            self.statistic += float(((counts - expected) ** 2 / expected).sum())
            self.freedom += len(expected) - 1

    @property
    def p(self) -> float:
        """The chance of such a statistic or a larger one, by Wilson and Hilferty."""
        if self.freedom == 0:
            return math.nan
        spread = 2 / (9 * self.freedom)
        z = ((self.statistic / self.freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
        return 0.5 * math.erfc(z / math.sqrt(2))


def first_tokens(samples: Sequence[Sample]) -> ChiSquare:
    counts = Counter(sample.tokens[0] for sample in samples)
    test = ChiSquare()
    test.add(np.array([float(counts[v]) for v in range(VOCABULARY)]), probabilities(()))
    return test


def third_tokens(samples: Sequence[Sample]) -> ChiSquare:
    """Against the third token's marginal, every start enumerated."""
    chances = np.zeros(VOCABULARY)
    for a, b in product(range(VOCABULARY), repeat=2):
        chances += probabilities(())[a] * probabilities((a,))[b] * probabilities((a, b))
    counts = Counter(sample.tokens[2] for sample in samples)
    test = ChiSquare()
    test.add(np.array([float(counts[v]) for v in range(VOCABULARY)]), chances)
    return test


def third_given_start(samples: Sequence[Sample]) -> ChiSquare:
    """Within every (first, second token), pooled."""
    counts = Counter(sample.tokens for sample in samples)
    test = ChiSquare()
    for a, b in product(range(VOCABULARY), repeat=2):
        table = np.array([float(counts[a, b, v]) for v in range(VOCABULARY)])
        test.add(table, probabilities((a, b)))
    return test


def by_path(samples: Iterable[Sample]) -> dict[Path, list[Sample]]:
    paths: dict[Path, list[Sample]] = {"fresh": [], "hit": [], "miss": []}
    for sample in samples:
        paths[sample.path].append(sample)
    return paths


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return sampled(range(20_000))


def test_the_first_token_has_the_targets_distribution(samples: list[Sample]) -> None:
    assert first_tokens(samples).p > 0.01


def test_the_third_token_has_the_targets_distribution(samples: list[Sample]) -> None:
    assert third_tokens(samples).p > 0.01
    assert third_given_start(samples).p > 0.01


@pytest.mark.parametrize("path", ["fresh", "hit", "miss"])
def test_the_third_token_has_the_targets_distribution_after_a(
    path: Path, samples: list[Sample]
) -> None:
    chosen = by_path(samples)[path]
    assert len(chosen) > 1_500
    assert third_given_start(chosen).p > 0.01


def generous(
    logits: NDArray[np.float32], committed: Sequence[int], drafted: Sequence[int], sampler: Sampler
) -> Verdict:
    """Wrong: accepts a draft token that is among the likelier half of the tokens."""
    for j in range(len(drafted) + 1):
        token = int(sampler.choose(logits[j : j + 1], [len(committed) + j])[0])
        if j == len(drafted):
            return Verdict(j, token)
        if token != drafted[j] and drafted[j] not in np.argsort(-logits[j])[: VOCABULARY // 2]:
            return Verdict(j, token)
    raise AssertionError("the last row always decides")


def stubborn(
    logits: NDArray[np.float32], committed: Sequence[int], drafted: Sequence[int], sampler: Sampler
) -> Verdict:
    """Wrong: at the first disagreement the draft's own token is kept as the correction."""
    for j in range(len(drafted) + 1):
        token = int(sampler.choose(logits[j : j + 1], [len(committed) + j])[0])
        if j == len(drafted):
            return Verdict(j, token)
        if token != drafted[j]:
            return Verdict(j, drafted[j])
    raise AssertionError("the last row always decides")


@pytest.mark.parametrize("broken", [generous, stubborn])
def test_broken_acceptance_is_noticed(broken: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the test, with half the samples."""
    monkeypatch.setattr("mirror_edge.answer.verify", broken)
    wrong = sampled(range(10_000))
    assert third_tokens(wrong).p < 0.01
    for path, found in by_path(wrong).items():
        # No root is ever the draft's own token, so the stubborn never hit.
        if broken is not stubborn or path != "hit":
            assert third_given_start(found).p < 0.01


def test_the_p_value_is_that_of_the_tables() -> None:
    for statistic, freedom, p in ((18.475, 7, 0.01), (6.346, 7, 0.5), (135.807, 100, 0.01)):
        assert ChiSquare(statistic, freedom).p == pytest.approx(p, rel=0.03)


def test_a_fair_sample_passes_and_a_bent_one_does_not() -> None:
    def drawn(chances: NDArray[np.float64]) -> Iterator[Sample]:
        for v in np.random.default_rng(1).choice(VOCABULARY, 20_000, p=chances):
            yield Sample((int(v), 0, 0), "fresh")

    fair = probabilities(())
    assert first_tokens(list(drawn(fair))).p > 0.01
    bent = fair + 0.02 * (np.eye(VOCABULARY)[0] - np.eye(VOCABULARY)[3])
    assert first_tokens(list(drawn(bent))).p < 0.01
