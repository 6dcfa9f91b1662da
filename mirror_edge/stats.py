"""What an answer cost and what speculation brought, added up step by step."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from mirror_edge.policy import DrafterName, Mode
from mirror_edge.trace import Span, covered, overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["DraftRecord", "Stats", "StepRecord"]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step: what it decided, and its times in seconds."""

    mode: Mode
    waited: float
    """Seconds at its start, for a fresh draft that was still in progress."""
    proposed: int
    """γ: draft tokens in the window."""
    accepted: int
    committed: int
    """Tokens that became part of the answer: A + 1, fewer at its end."""
    depth: int
    """Draft tokens asked for the next window."""
    roots: int
    rank: int | None
    """Where the outcome stood among the roots, drafted for or not, from 0; None if nowhere."""
    hit: bool | None
    """Whether the outcome had been prepared for; None where nothing was looked up."""
    drafter: DrafterName = "model"
    """Whose window it was; `ngram` where mode `auto` looked it up."""
    match: int = 0
    """Tokens of the longest match in prompt and answer, looked up for the window or not."""
    foretold: tuple[int, int] = (0, 0)
    """Of the tokens that followed the match: how many were right, and how many there were."""
    reviewed: Sequence[bool] | None = None
    """For tokens that the target generated alone, whether the draft would have predicted them;
    empty while it still reads them beside the target, None where it had not missed many."""
    began: float
    """On the trace's clock."""
    seconds: float
    prefix: float
    exit: float
    """On whichever device."""
    suffix: float
    rollout: float
    """Of the branch-complete rollout; 0 outside `mirror`."""
    hidden: float
    """The part of `rollout` during which the suffix ran."""
    fresh: float
    """Of the serial draft: after a miss, and in every `sd` step."""
    host: float
    """Time in which no device session ran, hand-overs included."""
    busy: Mapping[str, float]
    """How long each graph ran."""
    sent: int
    """Bytes copied to the devices' own memory."""
    read: int
    """Bytes copied back from it."""

    @property
    def serial(self) -> float:
        """Seconds of fresh draft, prefix, exit head and suffix, which wait for one another."""
        return self.fresh + self.prefix + self.busy.get("exit", 0.0) + self.suffix

    @property
    def longer(self) -> float:
        """Seconds by which the rollout, its device's exit head included, outlasts the suffix."""
        return max(0.0, self.busy.get("draft exit", 0.0) + self.rollout - self.suffix)

    @property
    def beyond_law(self) -> float:
        """Seconds that the law of the step does not know of, by what its parts took.

        Less than `host`: what the host does within a draft is part of that draft. A rollout counts
        where its branch was wanted.
        """
        longer = self.longer if self.hit else 0.0
        return max(0.0, self.seconds - self.serial - longer)

    @classmethod
    def of(
        cls,
        spans: tuple[Sequence[Span], Sequence[Span]],
        window: tuple[float, float],
        decided: Callable[..., StepRecord],
    ) -> StepRecord:
        """Sort the (calls, runs) that ended during the step by what they were.

        `window` is when the step began and ended; what a run did before it belongs to the previous
        step. `decided` is this class with the fields that the step decided, without the times.
        """
        (calls, runs), (began, ended) = spans, window
        named: dict[str, list[Span]] = {}
        for run in runs:
            named.setdefault(run.name, []).append(run)
        busy = {name: covered(some) for name, some in named.items()}
        rollout = [call for call in calls if call.name == "rollout"]
        return decided(
            began=began,
            seconds=ended - began,
            prefix=busy.get("prefix", 0.0),
            exit=busy.get("exit", 0.0) + busy.get("draft exit", 0.0),
            suffix=busy.get("suffix", 0.0),
            rollout=covered(rollout),
            hidden=overlap(named.get("suffix", ()), rollout),
            fresh=covered(call for call in calls if call.name == "fresh"),
            host=max(0.0, ended - began - covered(runs, began, ended)),
            busy=busy,
            sent=sum(run.sent for run in runs),
            read=sum(run.read for run in runs),
        )


class DraftRecord(NamedTuple):
    """What has become of the draft: the last fields of `Stats`."""

    losses: tuple[str, ...] = ()
    restarts: int = 0
    lapses: int = 0

    def lost(self, why: str) -> DraftRecord:
        """And lost once more."""
        return self._replace(losses=(*self.losses, why))

    def returned(self) -> DraftRecord:
        """And back once more."""
        return self._replace(restarts=self.restarts + 1)

    def lapsed(self) -> DraftRecord:
        """And late once more."""
        return self._replace(lapses=self.lapses + 1)


@dataclass
class Stats:
    """The sums over an answer. Times are seconds."""

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    """Prompt tokens that were not in the cache already."""
    generated_tokens: int = 0
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0
    """After the first token; without what the caller did between the steps."""
    draft_losses: Sequence[str] = ()
    """Why the draft was lost, each time."""
    draft_restarts: int = 0
    """How often it came back."""
    draft_lapses: int = 0
    """How often the target went on alone because the draft took too long."""
    steps: list[StepRecord] = field(default_factory=list)
    placed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many nodes of each graph run on which provider."""

    @property
    def tokens_per_second(self) -> float | None:
        """The speed after the first token; None if there was only one."""
        return _ratio(self.generated_tokens - 1, self.decode_seconds)

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens that a step of the target gave; None before the first step."""
        return _ratio(sum(step.committed for step in self.steps), len(self.steps))

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values; ratios without a denominator are None."""
        steps = self.steps
        drafted = [s for s in steps if s.drafter == "model"]
        proposed = sum(s.proposed for s in drafted)
        accepted = sum(s.accepted for s in drafted)
        prepared = [s for s in steps if s.hit is not None]
        hits = sum(1 for s in prepared if s.hit)
        return {
            "prompt_tokens": self.prompt_tokens,
            "prefilled_tokens": self.prefilled_tokens,
            "generated_tokens": self.generated_tokens,
            "steps": len(steps),
            "steps_by_mode": dict(Counter(s.mode for s in steps)),
            "looked_up_steps": sum(s.drafter == "ngram" for s in steps),
            "tokens_per_step": self.tokens_per_step,
            "draft_tokens_proposed": proposed,
            "draft_tokens_accepted": accepted,
            "acceptance_rate": _ratio(accepted, proposed),
            "acceptance_lengths": _histogram(drafted),
            "hypothesis_hits": hits,
            "hypothesis_misses": len(prepared) - hits,
            "hit_rate": _ratio(hits, len(prepared)),
            "roots_per_step": _ratio(sum(s.roots for s in prepared), len(prepared)),
            "overlap_ratio": _ratio(sum(s.hidden for s in steps), sum(s.rollout for s in steps)),
            "time_to_first_token_s": self.time_to_first_token,
            "tokens_per_second": self.tokens_per_second,
            "median_step_ms": {
                name: _median_ms([getattr(s, name) for s in steps]) for name in ("seconds", "host")
            }
            | {  # over the steps that had one
                name: _median_ms([t for s in steps if (t := getattr(s, name)) > 0.0])
                for name in ("prefix", "exit", "suffix", "rollout", "fresh")
            },
            "draft_losses": list(self.draft_losses),
            "draft_restarts": self.draft_restarts,
            "draft_lapses": self.draft_lapses,
            "placement": {graph: _shares(nodes) for graph, nodes in self.placed.items()},
            "time_by_provider": _shares(self._times()),
            "bytes_per_step": {
                name: _ratio(sum(getattr(s, name) for s in steps), len(steps))
                for name in ("sent", "read")
            },
        }

    def _times(self) -> dict[str, float]:
        """How long each provider ran; a graph's time is shared out as its nodes are."""
        times: dict[str, float] = {}
        for graph, nodes in self.placed.items():
            seconds = sum(step.busy.get(graph, 0.0) for step in self.steps)
            for provider, share in _shares(nodes).items():
                times[provider] = times.get(provider, 0.0) + share * seconds
        return times


def _shares(parts: Mapping[str, float]) -> dict[str, float]:
    whole = sum(parts.values())
    return {name: part / whole for name, part in parts.items()} if whole else {}


def _histogram(steps: Sequence[StepRecord]) -> dict[str, int]:
    counts = Counter(s.accepted for s in steps if s.proposed)
    return {str(length): counts[length] for length in sorted(counts)}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _median_ms(seconds: Sequence[float]) -> float | None:
    return statistics.median(seconds) * 1e3 if seconds else None
