"""The speed-ups of the Mirror-SD paper (arXiv 2510.13161), in the simulator.

Each model's agreement and draft cost are fitted to the paper's means, so comparing with these only
guards against regressions. The order of the modes is not fitted.
"""

from __future__ import annotations

from functools import cache

import pytest

from mirror_edge.policy import Mode, Strategy
from mirror_edge.runtimes.profile import read
from mirror_edge.runtimes.scripts import StatedScript
from mirror_edge.runtimes.simulated import simulate

SPEED_UPS = {
    "paper-qwen3-14b": {
        "sd": (2.34, 1.76, 1.81, 2.80, 2.02, 2.07),
        "mirror + streams": (4.13, 3.07, 3.18, 5.32, 3.49, 3.70),
    },
    "paper-qwen3-32b": {
        "sd": (2.74, 2.07, 2.06, 3.33, 2.33, 2.67),
        "mirror + streams": (3.72, 3.14, 3.04, 5.84, 3.42, 3.59),
    },
}
"""Speed-ups over plain decoding at temperature 0: translation, summarization, question answering,
mathematical reasoning, retrieval-augmented generation, multi-turn."""


@cache
def simulated(name: str) -> dict[str, float]:
    """Speed-up over plain decoding, by mode."""
    profile = read(name)
    script = StatedScript(profile.text.agreement, profile.text.coverage, profile.text.streams)
    runs: list[tuple[Mode, int]] = [("ar", 0), ("sd", 0), ("sd", 2), ("mirror", 0), ("mirror", 2)]
    speeds = {}
    for mode, streams in runs:
        plan = Strategy(mode, profile.window, profile.candidates, profile.branches, 0)
        stats = simulate(profile, script, plan, new_tokens=2000, streams=streams)
        speeds[f"{mode} + streams" if streams else mode] = stats.as_dict()["tokens_per_second"]
    return {mode: speed / speeds["ar"] for mode, speed in speeds.items()}


@pytest.mark.parametrize("name", SPEED_UPS)
@pytest.mark.parametrize("mode", ["sd", "mirror + streams"])
def test_the_mean_speed_up_is_within_a_tenth_of_the_papers(name: str, mode: str) -> None:
    published = SPEED_UPS[name][mode]
    assert simulated(name)[mode] == pytest.approx(sum(published) / len(published), rel=0.10)


@pytest.mark.parametrize("name", SPEED_UPS)
def test_the_modes_are_in_the_papers_order(name: str) -> None:
    found = simulated(name)
    order = ["ar", "sd", "sd + streams", "mirror", "mirror + streams"]
    assert sorted(found, key=lambda mode: found[mode]) == order


def test_the_two_models_differ_only_in_agreement_and_draft_cost() -> None:
    small, large = (read(name) for name in SPEED_UPS)
    assert small.costs.prefix == large.costs.prefix
    assert small.costs.suffix == large.costs.suffix
    assert small.text.coverage == large.text.coverage
    assert small.text.streams == large.text.streams
    assert len(small.costs.draft.rows) == len(large.costs.draft.rows) == 1
