"""The rollout: every branch is the draft's own continuation, and nothing is computed twice.

The scripted draft refuses a row that is not shown exactly one token for each position.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.growth import Guesses
from mirror_edge.hypotheses import Branch, Root
from mirror_edge.lanes import Dropped
from mirror_edge.protocols import StoppedError
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.scripted import Language, ScriptedDraft, random_language
from mirror_edge.runtimes.virtual import VirtualClock
from mirror_edge.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCABULARY = 7
# The last three tokens matter, so a branch that sees another's tokens is a wrong one.
LANGUAGE = random_language(1, VOCABULARY, order=3)
GREEDY = Sampler(Sampling(), VOCABULARY)
SAMPLERS = {
    "greedy": GREEDY,
    "t1": Sampler(Sampling(temperature=1.0, seed=3), VOCABULARY),
    "penalised": Sampler(Sampling(temperature=0.7, repetition_penalty=1.5, seed=4), VOCABULARY),
}


class Counted(ScriptedDraft):
    """Notes the rows it is fed and those with streams; stays inside its context and its slots."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fed: list[tuple[int, int]] = []
        self.starts: list[int] = []

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.fed)

    def forward(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        start: int,
        hidden: NDArray[np.bool_] | None,
        wanted: NDArray[np.int64],
        streamed: NDArray[np.int64] | None = None,
        ahead: int = 0,
    ) -> NDArray[np.float32]:
        assert positions.max() < self.context
        assert start + len(tokens) <= self.slots
        assert tokens.max() < self.vocabulary
        if streamed is not None:
            assert positions[streamed].max() + ahead < self.context
        self.starts.append(start)
        self.fed.append((len(tokens), 0 if streamed is None else len(streamed) * ahead))
        return super().forward(tokens, positions, start, hidden, wanted, streamed, ahead)


def serial(
    language: Language, before: Sequence[int], depth: int, sampler: Sampler
) -> tuple[int, ...]:
    """The draft alone, one token at a time."""
    tokens = list(before)
    for _ in range(depth):
        chosen = sampler.choose(language(tokens)[None], [len(tokens)], [tokens])
        tokens.append(int(chosen[0]))
    return tuple(tokens[len(before) :])


def foreseen(sampler: Sampler, count: int, share: float) -> list[Language]:
    """Streams that say what the draft will choose, in `share` of the cases, else something else
    first and that second.
    """

    def stream(k: int) -> Language:
        def logits(tokens: Sequence[int]) -> NDArray[np.float32]:
            *before, token = serial(LANGUAGE, tokens, k + 1, sampler)
            if np.random.default_rng([k, *(token + 1 for token in tokens)]).random() < share:
                # Right if it is chosen as the draft would: same noise, same tokens before it.
                return LANGUAGE([*tokens, *before])
            ids, other = np.arange(VOCABULARY), (token + 1) % VOCABULARY
            second = np.where(ids == token, 5e2, 0.0)
            return np.where(ids == other, 1e3, second).astype(np.float32)

        return logits

    return [stream(k) for k in range(1, count + 1)]


class Session:
    """Drives a drafter as the step loop does, and checks each branch."""

    def __init__(
        self,
        sampler: Sampler,
        context: int = 4096,
        branch_rows: int = 4096,
        streams: Sequence[Language] = (),
        ahead: Guesses | None = None,
        main: int | None = None,
    ) -> None:
        self.draft = Counted(LANGUAGE, VOCABULARY, context, branch_rows, streams=streams, main=main)
        self.drafter = ModelDrafter(self.draft, ahead)
        self.sampler = sampler
        self.committed: list[int] = []
        self.untold: list[int] = []

    def prefill(self, tokens: Sequence[int]) -> None:
        self.committed, self.untold = list(tokens), []
        self.drafter.prefill(tokens)

    def commit(self, tokens: Sequence[int]) -> None:
        self.committed += tokens
        self.untold += tokens

    def rollout(self, drafted: Sequence[int], roots: Sequence[Root], depth: int) -> list[Branch]:
        """A rollout in the middle of a step: the draft knows all that is committed."""
        return self._rollout(self.committed, self.untold, drafted, roots, depth)

    def head_start(self, drafted: Sequence[int], depth: int) -> None:
        """What it brings is checked in the rollout that follows."""
        assert self.drafter.rollout(self.untold, drafted, (), depth, self.sampler) == []
        self.untold = []

    def fresh(self, depth: int) -> tuple[int, ...]:
        """The serial draft from the last committed token."""
        root, told = Root(0, self.committed[-1]), self.untold[:-1]
        found = self._rollout(self.committed[:-1], told, (), [root], depth)
        self.untold = self.committed[-1:]
        return found[0].tokens if found else ()

    def _rollout(
        self,
        committed: Sequence[int],
        told: Sequence[int],
        drafted: Sequence[int],
        roots: Sequence[Root],
        depth: int,
    ) -> list[Branch]:
        branches = self.drafter.rollout(list(told), drafted, roots, depth, self.sampler)
        self.untold = []
        furthest = max((root.row for root in roots), default=0)
        fits = max(0, min(depth, self.draft.context - len(committed) - furthest - 1))
        room = self.draft.slots - min(len(committed) + len(drafted), self.draft.context)
        kept = roots[: room // fits] if fits else []
        expected = []
        for root in kept:
            before = [*committed, *drafted[: root.row], root.token]
            expected.append(Branch(root, serial(LANGUAGE, before, fits, self.sampler)))
        assert branches == expected
        return branches


TOKEN = st.integers(0, VOCABULARY - 1)


@given(st.data(), st.sampled_from(sorted(SAMPLERS)))
@settings(max_examples=150, deadline=None)
def test_every_branch_is_the_drafts_own_continuation(data: st.DataObject, sampler: str) -> None:
    """Over hits, misses, partial acceptance, foreign windows and jumps, with and without streams
    that are right or wrong; small caches too, and such as forget the middle of the text."""
    context = data.draw(st.sampled_from([16, 30, 4096]), label="context")
    rows = data.draw(st.sampled_from([0, 5, 40, 4096]), label="branch rows")
    main = data.draw(st.sampled_from([None, 20, 28]), label="main rows") if rows > 40 else None
    count, share = data.draw(st.integers(0, 3), label="streams"), data.draw(st.floats(0, 1))
    streams = foreseen(SAMPLERS[sampler], count, share)
    used = data.draw(st.integers(0, count), label="used")
    siblings = data.draw(st.integers(0, VOCABULARY), label="siblings") if used else 0
    guesses = Guesses(used, siblings)
    session = Session(SAMPLERS[sampler], context, rows, streams, guesses, main)
    most = 8 if main is None else 40
    session.prefill(data.draw(st.lists(TOKEN, min_size=1, max_size=most), label="prompt"))
    session.commit([data.draw(TOKEN)])
    drafted: tuple[int, ...] | None = None
    for _ in range(data.draw(st.integers(1, 5), label="steps")):
        depth = data.draw(st.integers(1, 4), label="depth")
        if data.draw(st.integers(0, 5), label="jump") == 0:
            kept = data.draw(st.integers(0, len(session.committed) - 1), label="kept")
            session.prefill([*session.committed[:kept], *data.draw(st.lists(TOKEN, min_size=1))])
            session.commit([data.draw(TOKEN)])
            drafted = None
        if data.draw(st.integers(0, 5), label="foreign") == 0:
            drafted = tuple(data.draw(st.lists(TOKEN, max_size=7), label="window"))
        elif drafted is None:
            drafted = session.fresh(depth)
        if data.draw(st.booleans(), label="head start"):
            session.head_start(drafted, data.draw(st.integers(0, depth), label="ahead"))
        every = [Root(j, v) for j in range(len(drafted) + 1) for v in range(VOCABULARY)]
        some = st.lists(st.sampled_from(every), max_size=6, unique=True)
        branches = session.rollout(drafted, data.draw(some, label="roots"), depth)
        hit = data.draw(st.booleans(), label="hit")
        if branches and hit:
            branch = data.draw(st.sampled_from(branches), label="branch")
            session.commit([*drafted[: branch.root.row], branch.root.token])
            drafted = branch.tokens[: data.draw(st.integers(0, depth), label="shortened")]
        else:
            accepted = data.draw(st.integers(0, len(drafted)), label="accepted")
            session.commit([*drafted[:accepted], data.draw(TOKEN, label="correction")])
            drafted = None


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_costs_one_forward_a_draft_token_and_computes_nothing_twice(
    sampler: str, depth: int
) -> None:
    """Hit or miss, all of a window accepted or none: the rows of what came true are kept."""
    session = Session(SAMPLERS[sampler])
    session.prefill([1, 2, 3, 4, 5])
    assert (session.draft.forwards, session.draft.rows) == (1, 5)
    session.commit([6])

    def cost(work: Any) -> tuple[int, int]:
        before = session.draft.forwards, session.draft.rows
        work()
        return session.draft.forwards - before[0], session.draft.rows - before[1]

    drafted: tuple[int, ...] | None = None
    outcomes = [(0, True), (depth, True), (1, False), (0, False), (depth, False), (1, True)]
    for accepted, hit in outcomes * 2:
        if drafted is None:
            window: list[tuple[int, ...]] = []
            assert cost(lambda window=window: window.append(session.fresh(depth))) == (depth, depth)
            drafted = window[0]
        # A root a row that is no draft token, so that a miss can be any other.
        roots = [
            Root(j, next(v for v in range(VOCABULARY) if v not in drafted[j : j + 1]))
            for j in range(depth + 1)
        ]
        branches: list[Branch] = []
        # The last token of the window was drafted but never fed: one row more.
        assert cost(
            lambda d=drafted, r=roots, b=branches: b.extend(session.rollout(d, r, depth))
        ) == (depth, depth * len(roots) + 1)
        branch = branches[accepted]
        other = next(v for v in range(VOCABULARY) if v != branch.root.token)
        correction = branch.root.token if hit else other
        session.commit([*drafted[:accepted], correction])
        drafted = branch.tokens if hit else None


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("ahead", [0, 1, 3, 4])
@pytest.mark.parametrize("drafted", [(), (1, 2)])
def test_a_head_start_is_that_much_of_the_likeliest_branch(
    sampler: str, ahead: int, drafted: tuple[int, ...]
) -> None:
    session, depth = Session(SAMPLERS[sampler]), 4
    session.prefill([1, 2, 3, 4, 5])
    session.commit([6])
    before = session.draft.forwards
    session.head_start(drafted, ahead)
    assert session.draft.forwards - before == 1 + ahead
    (own,) = serial(LANGUAGE, [*session.committed, *drafted], 1, session.sampler)
    (branch,) = session.rollout(drafted, [Root(len(drafted), own)], depth)
    assert session.draft.forwards - before == 1 + depth
    # Of the next window's roots one a row is ahead, whichever it is; the others lack all.
    session.commit([*drafted, own])
    session.head_start(branch.tokens, ahead)
    for accepted in range(depth + 1):
        before, rows = session.draft.forwards, session.draft.rows
        known = branch.tokens[accepted : accepted + 1]
        every = [Root(accepted, v) for v in range(VOCABULARY) if v not in known]
        session.rollout(branch.tokens, every, depth)
        assert session.draft.forwards - before == depth
        assert session.draft.rows - rows == depth * len(every) - ahead
        session.head_start(branch.tokens, ahead)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("roots", [1, 3])
def test_right_streams_save_forwards_and_wrong_ones_cost_none(
    sampler: str, count: int, roots: int
) -> None:
    depth = 7

    def forwards(first: int, share: float, ahead: Guesses | None = None) -> int:
        streams = foreseen(SAMPLERS[sampler], count, share)
        session = Session(SAMPLERS[sampler], streams=streams, ahead=ahead)
        session.prefill([first] * 3)
        session.draft.forwards = 0
        session.rollout((), [Root(0, v) for v in range(roots)], depth)
        return session.draft.forwards

    for first in range(VOCABULARY):
        # The first forward knows no guess yet; each later one gains all guesses and a token more.
        assert forwards(first, 1.0) == 1 + -(-(depth - 1) // (count + 1))
        assert forwards(first, 0.0) == forwards(first, 1.0, Guesses(0)) == depth
        assert forwards(first, 1.0, Guesses(1)) == 1 + -(-(depth - 1) // 2)
        # What a stream says second is right, and the guesses behind what it says first are lost.
        assert forwards(first, 0.0, Guesses(count, 1)) == 1 + -(-(depth - 1) // 2)
        assert forwards(first, 1.0, Guesses(count, 1)) == forwards(first, 1.0)


@pytest.mark.parametrize(("row", "fastest"), [(0.0, 2), (1.0, 0)])
def test_with_a_clock_as_much_is_guessed_as_pays(row: float, fastest: int) -> None:
    """Where rows cost nothing, and where nothing else does."""
    clock = VirtualClock()
    draft = Counted(
        LANGUAGE,
        VOCABULARY,
        seconds=lambda rows: 1.0 + 10.0 * row * rows,
        virtual=clock,
        streams=foreseen(GREEDY, 2, 0.8),
    )
    drafter = ModelDrafter(draft, clock=clock)
    drafter.prefill([1, 2, 3])
    for token in range(20):
        draft.fed.clear()
        (branch,) = drafter.rollout([token % 3], (), [Root(0, 4)], 7, GREEDY)
        assert len(branch.tokens) == 7
    assert any(streams for _, streams in draft.fed) == (fastest > 0)


def test_a_guess_is_never_fed_beyond_the_depth_nor_a_stream_run_that_comes_too_late() -> None:
    draft = Counted(LANGUAGE, VOCABULARY, streams=foreseen(GREEDY, 2, 1.0))
    drafter = ModelDrafter(draft)
    drafter.prefill([1, 2, 3])
    drafter.rollout([], (), [Root(0, 4)], 6, GREEDY)
    # One token, then three by two guesses, then the two that are left by one.
    assert draft.fed == [(3, 0), (1, 2), (3, 6), (2, 0)]
    drafter.rollout([4], (), [Root(0, 4)], 2, GREEDY)
    drafter.rollout([4], (), [Root(0, 4)], 3, GREEDY)
    assert draft.fed[4:] == [(1, 0), (1, 0), (1, 1), (2, 0)]
    draft.fed.clear()
    drafter.rollout([4], (), [Root(0, 4)], 5, GREEDY)
    # Of the three rows the last one says the last token but one: nothing is left to guess.
    assert draft.fed == [(1, 2), (3, 4), (1, 0)]


def test_wrong_guesses_of_a_single_branch_take_no_slots() -> None:
    draft = Counted(LANGUAGE, VOCABULARY, streams=foreseen(GREEDY, 2, 0.0))
    drafter = ModelDrafter(draft)
    drafter.prefill([1, 2, 3])
    drafter.rollout([], (), [Root(0, 4)], 6, GREEDY)
    # One forward a token: each begins right behind the token before.
    assert draft.starts == [0, 3, 4, 5, 6, 7, 8]


def test_the_first_row_of_all_is_fed_before_any_branch() -> None:
    draft = Counted(LANGUAGE, VOCABULARY, streams=foreseen(GREEDY, 2, 1.0))
    (branch,) = ModelDrafter(draft).rollout([3], (), [Root(0, 4)], 5, GREEDY)
    assert branch.tokens == serial(LANGUAGE, [3, 4], 5, GREEDY)
    assert draft.fed[0] == (1, 0)


@pytest.mark.parametrize(
    ("branch_rows", "forwards"), [(1, None), (2, 4), (25, 4), (26, 3), (55, 3), (56, 2)]
)
def test_streams_take_the_slots_that_the_branches_leave(
    branch_rows: int, forwards: int | None
) -> None:
    """Six branches of four tokens; three streams a row, of which none to three can be used."""
    streams = foreseen(GREEDY, 3, 1.0)
    session = Session(GREEDY, context=32, branch_rows=branch_rows, streams=streams)
    session.prefill([i % 5 for i in range(10)])
    session.draft.forwards = 0
    branches = session.rollout((), [Root(0, v) for v in range(6)], 4)
    if forwards is None:
        assert len(branches) == 5
    else:
        assert (len(branches), session.draft.forwards) == (6, forwards)


def test_prefill_feeds_only_what_the_cache_does_not_share() -> None:
    session = Session(GREEDY)
    session.prefill([1, 2, 3, 4, 5])
    session.prefill([1, 2, 3, 6])
    assert session.draft.rows == 5 + 1
    session.prefill([1, 2])
    assert session.draft.rows == 6


def test_a_branch_that_came_true_is_shared_with_the_next_prompt() -> None:
    session = Session(GREEDY)
    session.prefill([1, 2, 3])
    branch = session.rollout((), [Root(0, 4), Root(0, 5)], 3)[1]
    before = session.draft.rows
    session.prefill([1, 2, 3, 5, *branch.tokens])
    assert session.draft.rows == before + 1


@pytest.mark.parametrize(("length", "forwards"), [(1, 1), (256, 1), (257, 2), (700, 3)])
def test_a_long_prompt_is_fed_in_chunks(length: int, forwards: int) -> None:
    session = Session(GREEDY)
    session.prefill([i % VOCABULARY for i in range(length)])
    assert (session.draft.forwards, session.draft.rows) == (forwards, length)


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_a_review_says_which_tokens_the_draft_would_have_said(data: st.DataObject) -> None:
    """Those of a text of which it has read a part, long enough that it forgets some of it."""
    sampler = SAMPLERS[data.draw(st.sampled_from(sorted(SAMPLERS)))]
    session = Session(sampler, main=data.draw(st.sampled_from([24, 4096])))
    read = data.draw(st.integers(0, 40))
    text = data.draw(st.lists(TOKEN, min_size=1, max_size=12))
    for own in data.draw(st.lists(st.booleans(), min_size=read, max_size=60)):
        text += serial(LANGUAGE, text, 1, sampler) if own else [data.draw(TOKEN)]
    if read:
        session.prefill(text[:read])
    latest = data.draw(st.integers(0, min(10, len(text) - 1)))
    right = session.drafter.review(text, latest, sampler)
    assert right == [
        serial(LANGUAGE, text[:at], 1, sampler) == (text[at],)
        for at in range(len(text) - latest, len(text))
    ]
    session.committed, session.untold = list(text), []
    session.commit([data.draw(TOKEN)])
    session.fresh(3)


def test_a_review_reads_what_was_missed_and_is_told_of_few_rows_at_once() -> None:
    session, text = Session(GREEDY), [i % VOCABULARY for i in range(400)]
    session.prefill(text[:300])
    session.draft.fed.clear()
    assert len(session.drafter.review(text, 64, GREEDY)) == 64
    assert [rows for rows, _ in session.draft.fed] == [35, 32, 32]
    session.draft.fed.clear()
    assert len(session.drafter.review([*text, 1, 2, 3], 3, GREEDY)) == 3
    assert [rows for rows, _ in session.draft.fed] == [3]


def test_of_a_text_beyond_its_context_a_draft_has_nothing_to_say() -> None:
    session = Session(GREEDY, context=50)
    assert session.drafter.review([1] * 50, 5, GREEDY) != []
    assert session.drafter.review([1] * 51, 5, GREEDY) == []


@pytest.mark.parametrize(("branch_rows", "kept"), [(0, 6), (6, 8), (12, 10), (300, 10)])
def test_without_slots_there_are_fewer_branches_the_first_ones(branch_rows: int, kept: int) -> None:
    session = Session(GREEDY, context=20, branch_rows=branch_rows)
    session.prefill([1, 2])
    roots = [Root(0, v) for v in range(6)] + [Root(0, v) for v in range(4)]
    assert len(session.rollout((), roots, 3)) == kept


@pytest.mark.parametrize(
    ("prompt", "depth"), [(9, 5), (13, 2), (14, 1), (15, 0), (16, 0), (17, 0), (40, 0)]
)
def test_the_end_of_the_context_shortens_the_branches(prompt: int, depth: int) -> None:
    session = Session(GREEDY, context=16, branch_rows=50)
    session.prefill([i % 5 for i in range(prompt)])
    branches = session.rollout((), [Root(0, 1), Root(0, 2)], 5)
    assert [len(branch.tokens) for branch in branches] == [depth, depth] * bool(depth)


def test_a_window_past_the_context_leaves_branches_for_its_rows_inside() -> None:
    """As from another drafter; this one's own windows end with the context."""
    session = Session(GREEDY, context=16, branch_rows=4)
    session.prefill([i % 5 for i in range(12)])
    roots = [Root(0, 1), Root(1, 2), Root(1, 3), Root(1, 4), Root(1, 6)]
    branches = session.rollout([6, 5, 4, 3, 2, 1, 0], roots, 4)
    assert [branch.root for branch in branches] == roots[:2]


def test_tokens_beyond_the_drafts_vocabulary_are_never_fed_or_said() -> None:
    """A target with padding ids: such a token is fed as 0."""
    sampler = Sampler(Sampling(temperature=1.0), VOCABULARY + 5)
    drafter = ModelDrafter(Counted(LANGUAGE, VOCABULARY))
    drafter.prefill([1, VOCABULARY + 2, 3])
    (branch,) = drafter.rollout([], (), [Root(0, VOCABULARY + 4)], 20, sampler)
    assert branch.tokens == serial(LANGUAGE, [1, 0, 3, 0], 20, sampler)


def test_nothing_to_do_is_nothing_done() -> None:
    session = Session(GREEDY)
    session.prefill([1, 2])
    assert session.rollout((), [Root(0, 1)], 0) == []
    assert session.draft.forwards == 1


@pytest.mark.parametrize("streams", [0, 2])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_dropped_rollout_ends_early_and_leaves_the_cache_usable(after: int, streams: int) -> None:
    sampler, dropped = SAMPLERS[sorted(SAMPLERS)[0]], Dropped()

    class Dropping(ScriptedDraft):
        def forward(self, *args: Any) -> Any:
            if self.forwards + 1 == after and args[2] > 0:
                dropped.set()
            return super().forward(*args)

    draft = Dropping(LANGUAGE, VOCABULARY, streams=foreseen(sampler, streams, 0.7))
    drafter = ModelDrafter(draft)
    drafter.prefill([1, 2, 3])
    draft.forwards = 0
    roots = [Root(0, 4), Root(0, 5)]
    for root, tokens in drafter.rollout([], (), roots, 9, sampler, dropped):
        assert len(tokens) == after if streams == 0 else after <= len(tokens) < 9
        assert tokens == serial(LANGUAGE, [1, 2, 3, root.token], len(tokens), sampler)
    assert draft.forwards == after

    [branch] = drafter.rollout([4], (), [Root(0, 6)], 4, sampler)
    assert branch.tokens == serial(LANGUAGE, [1, 2, 3, 4, 6], 4, sampler)
    come_true = serial(LANGUAGE, [1, 2, 3, 4, 6], 4, sampler)
    [branch] = drafter.rollout([6], come_true, [Root(4, 2)], 3, sampler)
    assert branch.tokens == serial(LANGUAGE, [1, 2, 3, 4, 6, *come_true, 2], 3, sampler)


class Stopping(ScriptedDraft):
    """Its forwards of the given numbers, from 0 on, are stopped: they leave rubbish behind."""

    def __init__(
        self, stopped: Collection[int], before: Callable[[int], None], **more: Any
    ) -> None:
        super().__init__(LANGUAGE, VOCABULARY, **more)
        self.stopped, self.before, self.asked, self.stops = stopped, before, -1, 0

    def forward(self, tokens: Any, positions: Any, start: int, *more: Any) -> Any:
        self.asked += 1
        self.before(self.asked)
        found = super().forward(tokens, positions, start, *more)
        if self.asked in self.stopped:
            self._tokens[start:] = -7
            self._positions[start:] = -7
            raise StoppedError
        return found

    def stop(self) -> None:
        self.stops += 1


@pytest.mark.parametrize("streams", [0, 2])
@given(stopped=st.sets(st.integers(0, 14)))
@settings(deadline=None, max_examples=40)
def test_forwards_that_were_stopped_by_mistake_are_made_again(
    streams: int, stopped: set[int]
) -> None:
    draft = Stopping(stopped, lambda _: None, streams=foreseen(GREEDY, streams, 0.7))
    drafter = ModelDrafter(draft)
    drafter.prefill([1, 2, 3])
    roots = [Root(0, 4), Root(0, 5)]
    branches = drafter.rollout([], (), roots, 5, GREEDY, Dropped())
    expected = [Branch(root, serial(LANGUAGE, [1, 2, 3, root.token], 5, GREEDY)) for root in roots]
    assert branches == expected
    said = [5, *expected[1].tokens[:2]]
    (branch,) = drafter.rollout(said, (), [Root(0, 6)], 4, GREEDY)
    assert branch.tokens == serial(LANGUAGE, [1, 2, 3, *said, 6], 4, GREEDY)


@pytest.mark.parametrize("streams", [0, 2])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_is_dropped_stops_the_forward_under_way(at: int, streams: int) -> None:
    dropped = Dropped()

    def before(number: int) -> None:
        if number == at:
            dropped.set()

    draft = Stopping({at}, before, streams=foreseen(GREEDY, streams, 0.5))
    drafter = ModelDrafter(draft)
    drafter.prefill([1, 2, 3])
    branches = drafter.rollout([], (), [Root(0, 4), Root(0, 5)], 9, GREEDY, dropped)
    assert draft.stops == 1
    assert draft.asked == at
    for root, tokens in branches:
        assert len(tokens) < 9
        assert tokens == serial(LANGUAGE, [1, 2, 3, root.token], len(tokens), GREEDY)
    (branch,) = drafter.rollout([4], (), [Root(0, 6)], 4, GREEDY)
    assert branch.tokens == serial(LANGUAGE, [1, 2, 3, 4, 6], 4, GREEDY)


@pytest.mark.parametrize("streams", [0, 2])
@pytest.mark.parametrize("wanted", [Root(0, 4), Root(1, 2), Root(2, 6), Root(0, 0)])
def test_once_the_outcome_is_known_only_its_branch_goes_on(wanted: Root, streams: int) -> None:
    dropped = Dropped()

    class Deciding(Counted):
        def forward(self, *args: Any) -> Any:
            if len(self.fed) == 1:  # Beside the first forward of the branches.
                dropped.drop_all_but(wanted)
            return super().forward(*args)

    draft = Deciding(LANGUAGE, VOCABULARY, streams=foreseen(GREEDY, streams, 0.5))
    drafter = ModelDrafter(draft)
    drafter.prefill([1, 2, 3])
    draft.fed.clear()
    drafted = serial(LANGUAGE, [1, 2, 3], 2, GREEDY)
    roots = [Root(0, 4), Root(0, 5), Root(1, 2), Root(2, 6)]
    branches = drafter.rollout([], drafted, roots, 9, GREEDY, dropped)
    for root, tokens in branches:
        assert len(tokens) == 9 if root == wanted else len(tokens) < 9
        before = [1, 2, 3, *drafted[: root.row], root.token]
        assert tokens == serial(LANGUAGE, before, len(tokens), GREEDY)
    # Without a branch for it there is nothing left to do; with one, a forward feeds no other.
    assert len(draft.fed) > 2 if wanted in roots else len(draft.fed) == 2
    assert all(rows <= 1 + streams for rows, _ in draft.fed[2:])

    said = [*drafted[: wanted.row], wanted.token]
    come_true = serial(LANGUAGE, [1, 2, 3, *said], 4, GREEDY)
    [branch] = drafter.rollout(said, come_true, [Root(4, 2)], 3, GREEDY)
    assert branch.tokens == serial(LANGUAGE, [1, 2, 3, *said, *come_true, 2], 3, GREEDY)


LONG = [token % VOCABULARY for token in range(300)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_long_text_takes_no_more_rows_than_there_are_for_it(sampler: str) -> None:
    """The drafts are right throughout, since the language looks back three tokens."""
    session = Session(SAMPLERS[sampler], main=40)
    session.prefill(LONG)
    assert session.draft.rows <= 40  # What it would forget at once it does not even read.
    session.commit([1])
    moved = session.draft.starts[-1]
    for token in LONG[:100]:
        session.fresh(3)
        session.rollout((1, 2), [Root(0, 3), Root(2, 5)], 3)
        session.commit([token])
        moved = max(moved, session.draft.starts[-1])
    assert moved < 40 + 2 + 2 * 3


def test_a_second_turn_reads_new_tokens_alone_where_the_middle_is_forgotten() -> None:
    session = Session(GREEDY, main=40)
    session.prefill(LONG)
    first = session.draft.rows
    session.prefill([*LONG, 1, 2, 3])
    assert session.draft.rows == first + 3
    session.commit([4])
    session.fresh(3)


@pytest.mark.parametrize("other", [[*LONG[:100], 6, 6, *LONG[102:]], LONG[:-20], LONG[:7], [5]])
def test_a_text_that_differs_in_what_is_forgotten_is_read_anew(other: list[int]) -> None:
    session = Session(GREEDY, main=40)
    session.prefill(LONG)
    before = session.draft.rows
    session.prefill(other)
    assert session.draft.rows - before >= min(len(other), 30)
    session.commit([4])
    session.fresh(3)


def test_a_window_is_never_forgotten() -> None:
    session = Session(GREEDY, main=24)
    session.prefill(LONG[:20])
    session.commit([1])
    session.rollout((2,) * 12, [Root(0, 3), Root(12, 5)], 2)
    assert session.draft.starts[-1] > 12
