"""What was measured of a machine, the profile that follows, and its simulated answers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirror_edge.apps.plain_pair import Measured
    from mirror_edge.apps.record import Record
    from mirror_edge.bundle import Bundle
    from mirror_edge.policy import Mode, Strategy
    from mirror_edge.runtimes.profile import Profile
    from mirror_edge.runtimes.recording import Recording
    from mirror_edge.stats import Stats, StepRecord

__all__ = ["MODES", "Prediction", "Round"]

MODES: tuple[Mode, ...] = ("ar", "sd", "mirror")
_MEASURED = (
    "target.prefix", "target.exit", "target.suffix", "draft.forward", "hand_over_ms", "host_ms",
    "slow_down", "text.agreement", "text.coverage",
)  # fmt: skip


@dataclass(frozen=True)
class Round:
    """One repeat."""

    measured: Measured
    calibration: list[StepRecord] = field(default_factory=list)
    real: dict[Mode, list[Stats]] = field(default_factory=dict)
    """The answers to the prompts that are asked about."""


@dataclass(frozen=True)
class Prediction:
    """All that was measured of a bundle on this machine, and what the simulator makes of it."""

    read: Bundle
    plans: dict[Mode, Strategy]
    records: list[Record] = field(default_factory=list)
    """How the models agree, prompt by prompt."""
    rounds: list[Round] = field(default_factory=list)

    def profile(self, rounds: Sequence[Round], mode: Mode) -> Profile:
        """The machine as measured in `rounds`, with the host's time of a step in `mode`."""
        from mirror_edge.apps.calibrate import host, in_use, typical
        from mirror_edge.runtimes.profile import Profile, Source, StatedText

        steps = [step for one in rounds for step in one.calibration]
        hand_over = statistics.median(one.measured.hand_over for one in rounds)
        agreed = self.recording()
        within = [sum(rank is not None and rank < k for rank in agreed.exit) for k in range(1, 9)]
        plan, spec = self.plans["mirror"], self.read.manifest.draft
        assert spec is not None
        return Profile(
            name=f"{self.read.manifest.name}, measured here",
            costs=in_use(typical([one.measured.costs for one in rounds]), steps),
            branch_rows=spec.branch_rows,
            stream_share=0.0,
            hand_over=hand_over,
            host=host(steps, mode, hand_over),
            text=StatedText(
                sum(agreed.draft) / len(agreed.draft),
                tuple(count / len(agreed.exit) for count in within),
            ),
            window=plan.window,
            candidates=plan.candidates,
            branches=plan.branches,
            sources=(
                Source(_MEASURED, "measured", "By python -m mirror_edge.apps.predict.", None),
            ),
        )

    def recording(self) -> Recording:
        """How the models agree, all prompts together."""
        from mirror_edge.runtimes.recording import Recording

        about = {
            "bundle": self.read.manifest.name,
            "prompts": len(self.records),
            "temperature": 0.0,
        }
        shared = chain.from_iterable(one.shared for one in self.records)
        ranks = chain.from_iterable(one.ranks for one in self.records)
        return Recording(about, list(shared), list(ranks))

    def figures(self) -> dict[Mode, dict[str, float]]:
        """By mode: tokens per second and per step, of the real answers and of the simulated ones.

        The ratio is predicted over measured: the median over the rounds, the least and the most.
        """
        return {mode: self._compared(mode) for mode in MODES}

    def _compared(self, mode: Mode) -> dict[str, float]:
        pairs = [(one.real[mode], self._simulated(one, mode)) for one in self.rounds]
        speeds = [(_speed(real), _speed(predicted)) for real, predicted in pairs]
        ratios = [predicted / measured for measured, predicted in speeds]
        return {
            "measured": statistics.median(measured for measured, _ in speeds),
            "predicted": statistics.median(predicted for _, predicted in speeds),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "measured_step": _step(pairs[0][0]),
            "predicted_step": _step(pairs[0][1]),
        }

    def _simulated(self, one: Round, mode: Mode) -> list[Stats]:
        """A round's answers, on the machine that was measured in that round."""
        from mirror_edge.runtimes.scripts import RecordedScript
        from mirror_edge.runtimes.simulated import simulate

        machine, answers = self.profile([one], mode), []
        for record in self.records:
            # Two places precede the record: the prompt's one token, and the answer's first.
            script = RecordedScript([True, True, *record.shared], [0, 0, *record.ranks])
            tokens = len(record.shared) + 1
            stats = simulate(machine, script, self.plans[mode], prompt_tokens=1, new_tokens=tokens)
            answers.append(stats)
        return answers


def _speed(answers: Sequence[Stats]) -> float:
    tokens = sum(stats.generated_tokens - 1 for stats in answers)
    return tokens / sum(stats.decode_seconds for stats in answers)


def _step(answers: Sequence[Stats]) -> float:
    steps = [step.committed for stats in answers for step in stats.steps]
    return sum(steps) / len(steps)
