"""The controller of mode `auto`, on scripted pairs and a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_edge.answer import Answer, Decoder
from mirror_edge.averages import Fading
from mirror_edge.controller import Controller
from mirror_edge.costs import Costs, Curve
from mirror_edge.decode import decode
from mirror_edge.driving import drive
from mirror_edge.experience import LONGEST_MATCH, Experience
from mirror_edge.law import StepLaw
from mirror_edge.measuring import measure
from mirror_edge.ngram import Lookup
from mirror_edge.policy import DrafterName, Mode, Speculation, Strategy, choices
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.scripted import Language, ScriptedDraft, ScriptedExitHead, ScriptedTarget
from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.stats import StepRecord
from mirror_edge.trace import Trace

VOCABULARY = 64
TOKENS = 300


def chain(agreement: Callable[[int], float], seed: int) -> Language:
    """Says the successor of the last token, or, in a share of contexts by position, another one."""

    @cache
    def logits(position: int, last: int) -> np.ndarray:
        draw = np.random.default_rng([seed, position, last])
        found = np.zeros(VOCABULARY, dtype=np.float32)
        right = (7 * last + 3) % VOCABULARY
        found[(right + 1 + draw.integers(20)) % VOCABULARY] = 1.0
        found[right] = 2.0 if draw.random() < agreement(position) else 0.5
        return found

    return lambda tokens: logits(len(tokens), tokens[-1])


@dataclass(frozen=True)
class Devices:
    """The times of two devices, in milliseconds."""

    target: Callable[[int], float]
    draft: Callable[[int], float]
    agreement: float
    later: float | None = None
    """From the middle of the answer on."""
    tokens: int = TOKENS
    exit: float = 0.1
    exit_beside: float | None = None
    """On the draft's device; None where it has none."""

    def agreed(self, position: int) -> float:
        changed = self.later is not None and position > self.tokens / 2
        return self.later if changed and self.later is not None else self.agreement

    def answer(
        self,
        plan: Strategy | None,
        drafter: DrafterName | None = "model",
        *,
        can_draft: bool = True,
    ) -> Answer:
        clock, trace = VirtualClock(), Trace()
        half = lambda rows: self.target(rows) / 2000  # noqa: E731
        target = ScriptedTarget(
            chain(lambda _: 1.0, 0),
            chain(lambda _: 0.9, 2),
            VOCABULARY,
            seconds={"prefix": half, "suffix": half, "exit": self.exit / 1000},
            trace=trace,
            virtual=clock,
        )
        draft = ScriptedDraft(
            chain(self.agreed, 1),
            VOCABULARY,
            seconds=lambda rows: self.draft(rows) / 1000,
            trace=trace,
            virtual=clock,
        )
        lanes = [VirtualLane(name, trace, clock, lambda *_: 0.0) for name in ("target", "draft")]
        head = None
        if self.exit_beside is not None:
            seconds = self.exit_beside / 1000
            head = ScriptedExitHead(chain(lambda _: 0.9, 2), seconds, trace, clock)
        decoder = Decoder(target, lanes[0], lanes[1], trace, clock, exit_head=head)
        model = ModelDrafter(draft)
        controller = Controller(measure(decoder, model)) if plan is None else None
        first = choices(
            Speculation(drafter=drafter),
            exit_heads=("target",) if head is None else ("target", "draft"),
            can_draft=can_draft,
        )
        return Answer(
            on=decoder,
            tokens=[1, 2, 3],
            plan=plan or first[0],
            sampler=Sampler(Sampling(), VOCABULARY),
            drafter=model if can_draft else None,
            eos=frozenset(),
            limit=3 + self.tokens,
            controller=controller,
            choices=first if plan is None else (),
            lookup=Lookup(LONGEST_MATCH) if drafter is None else None,
        )

    def speed(self, plan: Strategy | None) -> tuple[float, list[str]]:
        """Tokens a second, and the modes of the steps."""
        answer = self.answer(plan)
        for _ in drive(decode(answer)):
            pass
        return self.tokens / answer.stats.decode_seconds, [step.mode for step in answer.stats.steps]


PAIRS = {
    "flat devices, good draft": Devices(lambda _: 20, lambda _: 1, 0.8),
    "flat devices, slow draft": Devices(lambda _: 20, lambda _: 6, 0.8),
    "compute-bound devices": Devices(lambda n: 6 + 4 * n, lambda n: 0.5 + 0.3 * n, 0.8),
    "compute-bound target": Devices(lambda n: 2 + 9 * n, lambda _: 1, 0.6),
    "useless draft": Devices(lambda n: 8 + 2 * n, lambda n: 1 + 0.1 * n, 0.0),
    "slow, excellent draft": Devices(lambda n: 20 + n, lambda n: 4 + 0.2 * n, 0.95),
}


COPIED = Devices(lambda n: 10 + 0.2 * n, lambda _: 2, 0.5, tokens=600)
"""The text of these devices turns in a circle of 64 tokens at most."""


@pytest.mark.parametrize("can_draft", [True, False])
def test_what_was_said_before_is_looked_up_where_that_pays(can_draft: bool) -> None:
    answers = [
        COPIED.answer(None, drafter=drafter, can_draft=can_draft) for drafter in (None, "model")
    ]
    for answer in answers:
        for _ in drive(decode(answer)):
            pass
    copying, drafting = (answer.stats for answer in answers)
    assert sum(step.drafter == "ngram" for step in copying.steps[-30:]) >= 25
    assert not any(step.drafter == "ngram" for step in drafting.steps)
    assert copying.decode_seconds < 0.5 * drafting.decode_seconds


def test_what_is_seldom_right_is_not_looked_up() -> None:
    """A text in which the same words are followed by others every time."""
    answer = Devices(lambda n: 10 + 2 * n, lambda _: 1, 0.7).answer(None, drafter=None)
    truth = np.random.default_rng(0).integers(8, size=TOKENS + 8)

    def rambling(tokens: Sequence[int]) -> np.ndarray:
        logits = np.zeros(VOCABULARY, dtype=np.float32)
        logits[truth[len(tokens)]] = 1.0
        return logits

    target = answer.on.target
    assert isinstance(target, ScriptedTarget)
    target._language = rambling
    for _ in drive(decode(answer)):
        pass
    steps = answer.stats.steps[-100:]
    assert sum(step.match > 0 for step in steps) > 50
    assert sum(step.drafter == "ngram" for step in steps) < 5


@pytest.mark.parametrize(("beside", "place"), [(2.0, "draft"), (20.0, "target")])
def test_the_exit_head_goes_where_it_costs_less(beside: float, place: str) -> None:
    pair = Devices(lambda _: 20, lambda _: 1, 0.8, exit=2.0, exit_beside=beside)
    answer = pair.answer(None)
    used = "draft exit" if place == "draft" else "exit"
    for _ in drive(decode(answer)):
        pass
    mirrored = [step for step in answer.stats.steps if step.mode == "mirror"]
    assert len(mirrored) > 20
    assert sum(used in step.busy for step in mirrored) > 0.9 * len(mirrored)


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


@pytest.mark.parametrize(("first", "later"), [(0.0, 0.95), (0.95, 0.0)])
def test_auto_recovers_when_the_text_changes_its_character(first: float, later: float) -> None:
    pair = Devices(lambda n: 8 + 2 * n, lambda n: 1 + 0.1 * n, first, later, tokens=2000)
    _, modes = pair.speed(None)
    drafted = sum(mode != "ar" for mode in modes[-50:])
    assert drafted >= 45 if later > first else drafted <= 5


def step(mode: Mode, factor: float, committed: int = 1) -> StepRecord:
    """Of a target of which a forward takes `factor` times what was measured, with a window of 1."""
    return StepRecord(
        mode=mode, proposed=1, accepted=committed - 1, committed=committed, depth=0, roots=0,
        rank=None, hit=None, began=0.0, seconds=0.02 * factor, waited=0.0, prefix=0.01 * factor,
        exit=0.0, suffix=0.01 * factor, rollout=0.0, hidden=0.0, fresh=0.0, host=0.0, busy={},
        sent=0, read=0,
    )  # fmt: skip


def slow_draft() -> Controller:
    """Of a draft that takes as long as its target."""
    flat = Curve((1,), (0.01,))
    return Controller(Costs(flat, flat, flat, Curve((1,), (0.02,))))


def weighed(controller: Controller, among: Sequence[Strategy]) -> list[float]:
    """Seconds a token under each of the plans of a draft model, by what it knows now."""
    drafted = [plan for plan in among if plan.drafter == "model"]
    found: list[float] = (
        StepLaw(controller.costs, drafted).seconds_a_token(controller.experience).tolist()
    )
    return found


@pytest.mark.parametrize(("gain", "mode"), [(1.01, "ar"), (1.06, "sd")])
def test_a_draft_that_promises_next_to_nothing_is_left_in_peace(gain: float, mode: str) -> None:
    """A window of one commits 1.6 tokens, by what is held of a draft that nobody has seen."""
    half = Curve((1,), (0.01,))
    drafted = 1.6 * 0.0201 / gain - 0.0203
    among = choices(Speculation())
    controller = Controller(Costs(half, half, half, Curve((1,), (drafted,))))
    times = weighed(controller, among)
    assert times[0] / min(times) == pytest.approx(gain, abs=1e-3)
    assert controller.plan(among).mode == mode


def test_a_target_that_is_slow_beside_a_draft_is_not_held_to_be_slow_alone() -> None:
    controller, among = slow_draft(), choices(Speculation())
    alone, *_, beside = weighed(controller, among)
    for mode, factor in (*[("mirror", 1.8)] * 20, *[("ar", 1.0)] * 6, *[("mirror", 1.8)] * 20):
        controller.learn(step(mode, factor))
    assert weighed(controller, among)[0] < 1.25 * alone
    assert weighed(controller, among)[-1] > 1.3 * beside


def test_a_machine_that_is_slower_for_a_while_makes_no_mode_the_slower_one() -> None:
    """It is half as fast in the end; the mode that was in use by then is no worse for it."""
    among, times = choices(Speculation()), []
    for slower in (1.0, 2.0):
        controller = slow_draft()
        for mode, factor in (("ar", 1.0), ("sd", 1.1), ("sd", 1.1 * slower)):
            for _ in range(30):
                controller.learn(step(mode, factor))
        times.append(weighed(controller, among)[:8])
    ratios = [slow / fast for fast, slow in zip(*times, strict=True)]
    assert ratios == pytest.approx([2.0] * len(ratios), rel=0.02)


def test_a_step_beside_the_end_of_a_draft_says_nothing_of_the_target_alone() -> None:
    controller, among = slow_draft(), choices(Speculation())
    alone = weighed(controller, among)[0]
    for _ in range(20):
        controller.learn(step("mirror", 5.0))
        controller.learn(step("ar", 5.0))
    assert weighed(controller, among)[0] == alone


def test_a_single_step_that_took_very_long_counts_for_little() -> None:
    controller, among = slow_draft(), choices(Speculation())
    for factor in (*[1.0] * 20, 1000.0):
        controller.learn(step("ar", factor))
    assert weighed(controller, among)[0] < 1.1 * 0.0201


def test_a_plan_that_lasts_is_hardly_ever_weighed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, among = slow_draft(), choices(Speculation())
    law, times = StepLaw.seconds_a_token, []
    monkeypatch.setattr(
        StepLaw, "seconds_a_token", lambda self, known: times.append(1) or law(self, known)
    )
    for _ in range(640):
        mode = controller.plan(among).mode
        controller.learn(step(mode, 1.0 if mode == "ar" else 1.2))
    assert 0 < len(times) < 80


@pytest.mark.parametrize(("factor", "most"), [(1.2, 50), (40.0, 8)])
def test_probes_that_cost_much_are_rarer(factor: float, most: int) -> None:
    controller, among, probes = slow_draft(), choices(Speculation()), 0
    for _ in range(4000):
        mode = controller.plan(among).mode
        probes += mode != "ar"
        controller.learn(step(mode, 1.0 if mode == "ar" else factor))
    assert 2 <= probes <= most


def test_a_draft_that_is_nearly_worth_it_is_looked_at_for_longer() -> None:
    """As far as its probes go, which cost the same either way."""
    tried = {}
    for factor in (1.05, 1.6):
        controller = slow_draft()
        modes = driven(
            controller, lambda mode, _, slow=factor: step(mode, {"ar": 1.0}.get(mode, slow))
        )
        tried[factor] = sum(mode != "ar" for mode in modes[200:])
    assert tried[1.05] > 2 * tried[1.6] > 0


def test_the_first_steps_of_a_draft_that_is_taken_up_again_say_nothing_of_its_times() -> None:
    """It has to read what it has missed, and nothing of it is in the processor's caches."""
    experience, costs = Experience(), slow_draft().costs
    for _ in range(20):
        experience.learn(step("ar", 1.0), costs)
        for factor in (9.0, 5.0, 3.0):
            experience.learn(replace(step("sd", factor), fresh=0.1), costs)
    assert experience.pace.factor("sd") == 1.0
    assert experience.fresh["sd"].value == 1.0
    experience.learn(replace(step("sd", 1.0), fresh=0.1), costs)
    assert experience.fresh["sd"].learnt == [pytest.approx(5.0)]


def test_short_steps_are_looked_at_together_and_none_is_left_out() -> None:
    """Steps of two milliseconds, over one of which the answer is abandoned."""
    seen: list[int] = []
    short = Devices(lambda _: 2, lambda _: 0.1, 0.0)

    def answered() -> Answer:
        answer = short.answer(None)
        assert isinstance(answer.controller, Controller)
        learn = answer.controller.learn
        answer.controller.learn = lambda step: (seen.append(step.committed), learn(step))[1]  # type: ignore[method-assign]
        return answer

    whole = answered()
    gaps = []
    for _ in drive(decode(whole)):
        gaps.append(len(whole.stats.steps))
    assert len(seen) == len(whole.stats.steps) == len(gaps) - 1
    assert max(gaps.count(steps) for steps in set(gaps)) in range(4, 7)
    seen.clear()
    part = answered()
    said = drive(decode(part))
    for _ in range(8):
        next(said)
    said.close()
    assert len(seen) == len(part.stats.steps) == 7
    assert part.stats.decode_seconds == pytest.approx(sum(s.seconds for s in part.stats.steps))


def test_an_answer_of_the_target_alone_leaves_the_draft_in_peace() -> None:
    answer = PAIRS["useless draft"].answer(None)
    controller, trace = answer.controller, answer.on.trace
    trace.take()
    spans = trace.keep()
    assert isinstance(controller, Controller)
    while controller.plan(answer.choices).mode != "ar":
        controller.learn(step("mirror", 3.0))
    answer.limit = len(answer.tokens) + 20
    for _ in drive(decode(answer)):
        pass
    assert len(answer.tokens) == answer.limit
    assert {call.lane for call in spans.calls} == {"target"}


def learnt(agreements: Sequence[float]) -> Experience:
    """From windows of 4 whose tokens are accepted with the probability of their moment."""
    rng, experience = np.random.default_rng(0), Experience()
    for agreement in agreements:
        right = rng.random(4) < agreement
        accepted = 4 if right.all() else int(np.argmin(right))
        made = replace(step("sd", 1.0, accepted + 1), proposed=4)
        experience.learn(made, slow_draft().costs)
    return experience


def test_acceptance_follows_a_text_that_changes_its_character() -> None:
    assert learnt([0.8] * 200).acceptance.mean == pytest.approx(0.8, abs=0.1)
    assert learnt([0.8] * 200 + [0.1] * 60).acceptance.mean < 0.35
    assert learnt([0.1] * 200 + [0.9] * 30).acceptance.mean > 0.7


def test_a_draft_that_is_taken_up_again_says_first_what_it_would_have_said() -> None:
    """So a text that has become easy is drafted at once, and a useless draft hardly tried."""
    pair = Devices(lambda n: 8 + 2 * n, lambda n: 1 + 0.1 * n, 0.0, 0.95, tokens=2000)
    answer = pair.answer(None)
    for _ in drive(decode(answer)):
        pass
    steps = answer.stats.steps
    reviews = [at for at, step in enumerate(steps) if step.reviewed]
    easy = next(at for at in reviews if sum(steps[at].reviewed or ()) > 30)
    first, second, *_ = [at for at in reviews if at < easy]
    tried = [sum(step.mode != "ar" for step in steps[at : at + 40]) for at in (first, second)]
    assert tried[0] > 4, "its times are not known yet"
    assert tried[1] <= 3, "what was planned when the review came in"
    assert sum(step.mode != "ar" for step in steps[easy : easy + 20]) >= 18
    assert all(step.reviewed is None for step in steps[easy + 20 :])


def test_an_answer_that_is_left_while_the_draft_reads_leaves_no_trial_behind() -> None:
    """The next one has other plans, and among them the very one that was tried."""
    controller, alone = slow_draft(), step("ar", 1.0)
    while controller.plan(choices(Speculation())).mode == "ar":
        controller.learn(alone)
    controller.learn(replace(alone, reviewed=()))
    tried = controller.plan(choices(Speculation()))
    others = choices(Speculation(window=tried.window))
    assert tried in others
    modes = []
    for _ in range(40):
        modes.append(controller.plan(others).mode)
        controller.learn(alone)
    assert set(modes) == {"ar"}


def test_a_review_counts_though_the_step_was_looked_up() -> None:
    experience = Experience()
    told = replace(step("sd", 1.0), drafter="ngram", reviewed=(True,) * 64)
    experience.learn(told, slow_draft().costs)
    assert experience.acceptance.mean > 0.85


def test_slow_models_are_measured_in_few_rounds() -> None:
    """Passes of half a second: every size is tried, once to warm up and once for good."""
    answer = Devices(lambda _: 500, lambda _: 20, 0.8).answer(None)
    assert answer.on.clock() < 60
    assert answer.controller is not None
    assert answer.controller.costs.prefix(4) == pytest.approx(0.25)


def test_acceptance_is_told_apart_by_place() -> None:
    """A draft whose first token is nearly always right, and whose second hardly ever."""
    experience, costs = Experience(), slow_draft().costs
    rng = np.random.default_rng(0)
    for _ in range(200):
        accepted = int(rng.random() < 0.9) and 1 + int(rng.random() < 0.1)
        experience.learn(replace(step("sd", 1.0, accepted + 1), proposed=4), costs)
    alone, *expected = experience.tokens(4)
    assert alone == 1.0
    assert expected[0] == pytest.approx(1.9, abs=0.15)
    assert expected[1] == pytest.approx(1.9 + 0.09, abs=0.25)


def test_places_that_are_not_seen_are_like_those_that_are() -> None:
    first = learnt([0.9] * 200)
    seen, costs = Experience.of(first.as_dict()), slow_draft().costs
    for _ in range(200):  # Windows of one, and a text that is now hard to guess.
        seen.learn(step("sd", 1.0, 1), costs)
    assert first.tokens(12)[-1] > 5.0
    assert seen.tokens(12)[-1] < 1.2


def test_a_burst_of_slow_steps_is_no_slower_device() -> None:
    """Something else has the machine for a dozen steps; after that it is what it was."""
    experience, costs = Experience(), slow_draft().costs
    for factor in (*[1.0] * 20, *[3.0] * 10, *[1.0] * 4):
        experience.learn(step("ar", factor), costs)
    assert experience.pace.factor("ar") == 1.0
    for _ in range(40):
        experience.learn(step("ar", 1.4), costs)
    assert experience.pace.factor("ar") == pytest.approx(1.4)


def driven(
    controller: Controller, taken: Callable[[Mode, int], StepRecord], steps: int = 1500
) -> list[Mode]:
    """The modes of so many steps, each of which is as `taken` says."""
    among, modes = choices(Speculation()), []
    for number in range(steps):
        modes.append(controller.plan(among).mode)
        controller.learn(taken(modes[-1], number))
    return modes


def test_what_one_probe_costs_does_not_put_off_the_other() -> None:
    """The mirror is forty times slower here; the target alone is asked all the same."""
    flat = Curve((1,), (0.01,))
    controller = Controller(Costs(flat, flat, flat, Curve((1,), (0.004,))))

    def taken(mode: Mode, number: int) -> StepRecord:
        slow = {"ar": 1.2, "sd": 1.0, "mirror": 40.0}[mode]
        return replace(step(mode, slow, 2 if mode == "sd" and number % 2 else 1), fresh=0.004)

    modes = driven(controller, taken)
    assert modes.count("sd") > 1300
    assert modes.index("mirror") < 300
    assert modes.index("ar") < 300


def test_a_target_that_was_only_seen_in_a_burst_is_asked_again() -> None:
    """A draft that is never right; but the target alone is slow just when it is first tried."""
    flat = Curve((1,), (0.01,))
    controller = Controller(Costs(flat, flat, flat, Curve((1,), (0.004,))))

    def taken(mode: Mode, number: int) -> StepRecord:
        slow = {"ar": 4.0 if number < 40 else 1.0, "sd": 1.0, "mirror": 2.0}[mode]
        return replace(step(mode, slow, 1), fresh=0.004)

    assert driven(controller, taken, 4000)[500:].count("ar") > 3300


def test_a_mirror_that_gains_next_to_nothing_is_not_tried_again_and_again() -> None:
    """Two percent in every window: less than it has to promise, and no reason to ask on and on."""
    flat = Curve((1,), (0.01,))
    controller = Controller(Costs(flat, flat, flat, Curve((1,), (0.02,))))

    def taken(mode: Mode, _: int) -> StepRecord:
        return step(mode, {"ar": 1.0, "sd": 3.0, "mirror": 1.96}[mode], 1 if mode == "ar" else 2)

    assert driven(controller, taken).count("mirror") < 100


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
    assert costs.serial(4) == pytest.approx(4 * (0.5 + 0.3) / 1000, rel=0.15)
    assert Costs.of(asdict(costs)) == costs


@pytest.mark.parametrize("begins", [0.1 * tenth for tenth in range(9)])
def test_a_bad_moment_of_the_machine_spoils_no_measurement(begins: float) -> None:
    """Everything takes four times as long for a third of a second, whenever that is."""
    ran = 0.0

    def moment(seconds: float) -> float:
        nonlocal ran
        seconds *= 4.0 if begins <= ran < begins + 0.3 else 1.0
        ran += seconds
        return 1000 * seconds

    def target(rows: int) -> float:
        return moment((1 + 0.1 * rows) / 1000)

    bad = Devices(target, lambda rows: moment((0.4 + 0.05 * rows) / 1000), 0.8)
    good = Devices(lambda rows: 1 + 0.1 * rows, lambda rows: 0.4 + 0.05 * rows, 0.8)
    measured, truth = (pair.answer(None).controller.costs for pair in (bad, good))  # type: ignore[union-attr]
    assert ran > begins + 0.3
    for rows in (1, 4, 8):
        assert measured.prefix(rows) == pytest.approx(truth.prefix(rows), rel=0.02)
        assert measured.suffix(rows) == pytest.approx(truth.suffix(rows), rel=0.02)
        assert measured.draft(rows) == pytest.approx(truth.draft(rows), rel=0.02)
        assert measured.serial(rows) == pytest.approx(truth.serial(rows), rel=0.02)
    assert measured.beside == pytest.approx(truth.beside, rel=0.02)


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
