"""The controller of mode `auto`, on scripted pairs and a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_edge.answer import Answer, Decoder
from mirror_edge.controller import Controller
from mirror_edge.costs import Costs, Curve
from mirror_edge.decode import decode
from mirror_edge.experience import Experience, Fading
from mirror_edge.measuring import measure
from mirror_edge.policy import Speculation, Strategy, choices
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.scripted import Language, ScriptedDraft, ScriptedTarget
from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.trace import Trace

VOCABULARY = 64
TOKENS = 300


def chain(agreement: float, seed: int) -> Language:
    """Says the successor of the last token, or, in a stated share of contexts, another one."""

    @cache
    def logits(position: int, last: int) -> np.ndarray:
        draw = np.random.default_rng([seed, position, last])
        found = np.zeros(VOCABULARY, dtype=np.float32)
        right = (7 * last + 3) % VOCABULARY
        found[(right + 1 + draw.integers(20)) % VOCABULARY] = 1.0
        found[right] = 2.0 if draw.random() < agreement else 0.5
        return found

    return lambda tokens: logits(len(tokens), tokens[-1])


@dataclass(frozen=True)
class Devices:
    """The times of two devices, in milliseconds."""

    target: Callable[[int], float]
    draft: Callable[[int], float]
    agreement: float

    def answer(self, plan: Strategy | None) -> Answer:
        clock, trace = VirtualClock(), Trace()
        half = lambda rows: self.target(rows) / 2000  # noqa: E731
        target = ScriptedTarget(
            chain(1.0, 0),
            chain(0.9, 2),
            VOCABULARY,
            seconds={"prefix": half, "suffix": half, "exit": 1e-4},
            trace=trace,
            virtual=clock,
        )
        draft = ScriptedDraft(
            chain(self.agreement, 1),
            VOCABULARY,
            seconds=lambda rows: self.draft(rows) / 1000,
            trace=trace,
            virtual=clock,
        )
        lanes = [VirtualLane(name, trace, clock, lambda *_: 0.0) for name in ("target", "draft")]
        decoder = Decoder(target, lanes[0], lanes[1], trace, clock)
        drafter = ModelDrafter(draft)
        controller = Controller(measure(decoder, drafter)) if plan is None else None
        first = choices(Speculation())
        return Answer(
            on=decoder,
            tokens=[1, 2, 3],
            plan=plan or first[0],
            sampler=Sampler(Sampling(), VOCABULARY),
            drafter=drafter,
            eos=frozenset(),
            limit=3 + TOKENS,
            controller=controller,
            choices=first if plan is None else (),
        )

    def speed(self, plan: Strategy | None) -> tuple[float, list[str]]:
        """Tokens a second, and the modes of the steps."""
        answer = self.answer(plan)

        async def run() -> None:
            async for _ in decode(answer):
                pass

        asyncio.run(run())
        return TOKENS / answer.stats.decode_seconds, [step.mode for step in answer.stats.steps]


PAIRS = {
    "flat devices, good draft": Devices(lambda _: 20, lambda _: 1, 0.8),
    "flat devices, slow draft": Devices(lambda _: 20, lambda _: 6, 0.8),
    "compute-bound devices": Devices(lambda n: 6 + 4 * n, lambda n: 0.5 + 0.3 * n, 0.8),
    "compute-bound target": Devices(lambda n: 2 + 9 * n, lambda _: 1, 0.6),
    "useless draft": Devices(lambda n: 8 + 2 * n, lambda n: 1 + 0.1 * n, 0.0),
    "slow, excellent draft": Devices(lambda n: 20 + n, lambda n: 4 + 0.2 * n, 0.95),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_auto_is_near_the_best_fixed_setting_and_never_far_below_the_target_alone(
    pair: str,
) -> None:
    some = {
        (plan.mode, plan.window, plan.branches): plan
        for plan in choices(Speculation())
        if plan.mode == "ar" or (plan.window in (3, 5, 7) and plan.branches in (2, 8))
    }
    found = {plan.mode: 0.0 for plan in some.values()}
    for plan in some.values():
        found[plan.mode] = max(found[plan.mode], PAIRS[pair].speed(plan)[0])
    speed, _ = PAIRS[pair].speed(None)
    assert speed >= 0.95 * max(found.values())
    assert speed >= 0.97 * found["ar"]


def test_a_useless_draft_is_tried_ever_more_rarely() -> None:
    _, modes = PAIRS["useless draft"].speed(None)
    tried = [at for at, mode in enumerate(modes) if mode != "ar"]
    assert modes[-1] == "ar"
    assert len([at for at in tried if at > 30]) <= 8


def learnt(agreements: Sequence[float]) -> Experience:
    """From windows of 4 whose tokens are accepted with the probability of their moment."""
    rng, experience = np.random.default_rng(0), Experience()
    for agreement in agreements:
        right = rng.random(4) < agreement
        accepted = 4 if right.all() else int(np.argmin(right))
        judged = min(accepted + 1, 4)
        experience.acceptance.add(accepted / judged, judged)
    return experience


def test_acceptance_follows_a_text_that_changes_its_character() -> None:
    assert learnt([0.8] * 200).acceptance.mean == pytest.approx(0.8, abs=0.1)
    assert learnt([0.8] * 200 + [0.1] * 60).acceptance.mean < 0.35
    assert learnt([0.1] * 200 + [0.9] * 30).acceptance.mean > 0.7


@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=60))
def test_a_fading_mean_stays_within_what_it_saw(prior: float, values: list[float]) -> None:
    mean = Fading(prior)
    for value in values:
        mean.add(value)
    assert min([prior, *values]) - 1e-9 <= mean.mean <= max([prior, *values]) + 1e-9


def test_a_curve_is_straight_between_its_points_and_goes_on_beyond() -> None:
    curve = Curve((1, 2, 6), (1.0, 3.0, 5.0))
    assert [curve(n) for n in (1, 1.5, 2, 4, 6, 8)] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert Curve((2,), (7.0,))(50) == 7.0


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [((), ()), ((1, 2), (1.0,)), ((2, 1), (1.0, 1.0)), ((0,), (1.0,)), ((1,), (-1.0,))],
)
def test_what_is_no_curve_is_refused(rows: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="curve"):
        Curve(rows, seconds)


def test_measuring_finds_the_times_of_the_devices() -> None:
    answer = PAIRS["compute-bound devices"].answer(None)
    assert answer.controller is not None
    costs = answer.controller.costs
    for rows in (1, 3, 8):
        assert costs.prefix(rows) == pytest.approx((6 + 4 * rows) / 2000, rel=1e-6)
        assert costs.suffix(rows) == pytest.approx((6 + 4 * rows) / 2000, rel=1e-6)
    assert costs.exit(4) == pytest.approx(1e-4, rel=1e-6)
    assert costs.draft(8) == pytest.approx((0.5 + 0.3 * 8) / 1000, rel=0.15)
    assert costs.beside == 1.0
    assert Costs.of(asdict(costs)) == costs


@pytest.mark.parametrize(
    ("suffix", "forwards"),
    [(0.0, [8, 1, 1]), (0.001, [8, 1, 1]), (0.005, [8, 1, 1]), (0.006, [8, 8, 1]), (1.0, [8] * 3)],
)
def test_forwards_of_a_rollout_that_begin_after_the_suffix_advance_one_branch(
    suffix: float, forwards: list[int]
) -> None:
    draft, other = Curve((1, 8), (0.002, 0.005)), Curve((1,), (0.01,))
    costs = Costs(other, other, other, draft)
    assert costs.rollout(8, 3, suffix) == pytest.approx(sum(map(draft, forwards)))
