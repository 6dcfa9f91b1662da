"""Prompts: what the first token waits for, and which rows a second turn feeds to both models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from mirror_edge.answer import Answer, Decoder
from mirror_edge.decode import decode
from mirror_edge.driving import drive
from mirror_edge.policy import Mode, Strategy
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.scripted import ScriptedDraft, ScriptedTarget, random_language
from mirror_edge.runtimes.virtual import VirtualClock, VirtualLane
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.trace import Trace

VOCABULARY = 24
LANGUAGE = random_language(1, VOCABULARY)
PROMPT = [token % VOCABULARY for token in range(700)]
WINDOW = 3


class CountingTarget(ScriptedTarget):
    """Remembers at which positions prompts were fed."""

    places: list[int]

    def prefill(self, tokens: Sequence[int], start: int) -> Any:
        self.places += range(start, start + len(tokens))
        return super().prefill(tokens, start)


class CountingDraft(ScriptedDraft):
    """Remembers at which positions text was fed, branches apart."""

    places: list[int]

    def forward(self, tokens: Any, positions: Any, start: int, hidden: Any, *rest: Any) -> Any:
        if hidden is None:
            self.places += np.asarray(positions).tolist()
        return super().forward(tokens, positions, start, hidden, *rest)


@dataclass
class House:
    """Both models on virtual lanes."""

    draft_reads: float = 0.0
    """Seconds that the draft takes for a prompt."""
    clock: VirtualClock = field(default_factory=VirtualClock)

    def __post_init__(self) -> None:
        trace, times = Trace(), {"prefill": 0.1, "prefix": 0.01, "suffix": 0.02}
        self.target = CountingTarget(
            LANGUAGE, LANGUAGE, VOCABULARY, seconds=times, virtual=self.clock
        )
        self.graph = CountingDraft(LANGUAGE, VOCABULARY)
        self.target.places, self.graph.places = [], []
        takes = {"prefill": self.draft_reads}
        lanes = [
            VirtualLane("target", trace, self.clock, lambda *_: 0.0),
            VirtualLane("draft", trace, self.clock, lambda call, *_: takes.get(call, 0.001)),
        ]
        self.on = Decoder(self.target, lanes[0], lanes[1], trace, self.clock)
        self.drafter = ModelDrafter(self.graph)

    def answer(self, mode: Mode, prompt: Sequence[int], new: int) -> Answer:
        answer = Answer(
            on=self.on,
            tokens=list(prompt),
            plan=Strategy(mode, WINDOW, 4, 4, 0),
            sampler=Sampler(Sampling(), VOCABULARY),
            drafter=None if mode == "ar" else self.drafter,
            eos=frozenset(),
            limit=len(prompt) + new,
            patience=60.0,
        )

        for _ in drive(decode(answer)):
            pass
        return answer


@pytest.mark.parametrize("mode", ["sd", "mirror"])
def test_the_first_token_does_not_wait_for_the_draft_to_read_the_prompt(mode: Mode) -> None:
    alone = House().answer("ar", PROMPT, 20)
    answer = House(draft_reads=5.0).answer(mode, PROMPT, 20)
    assert answer.tokens == alone.tokens
    assert alone.stats.time_to_first_token == pytest.approx(0.2)
    assert answer.stats.time_to_first_token == pytest.approx(0.2)
    # The draft took its time, and it was the second token that waited.
    assert answer.stats.steps[0].waited == pytest.approx(4.8, abs=0.1)


@pytest.mark.parametrize("mode", ["sd", "mirror"])
def test_a_second_turn_feeds_only_what_is_new_to_both_models(mode: Mode) -> None:
    house = House()
    first = house.answer(mode, PROMPT, 30)
    assert sorted(house.target.places) == list(range(len(PROMPT)))
    assert sorted(set(house.graph.places)) == list(range(max(house.graph.places) + 1))
    house.target.places.clear()
    house.graph.places.clear()
    prompt = [*first.tokens, 5, 6, 7, 8, 9]
    second = house.answer(mode, prompt, 30)
    # An answer's last token is in no cache yet.
    new = list(range(len(first.tokens) - 1, len(prompt)))
    assert house.target.places == new
    assert second.stats.prefilled_tokens == len(new)
    # The draft may not have heard of the last step's tokens, and feeds nothing twice.
    places = house.graph.places
    assert min(places) >= len(first.tokens) - WINDOW - 1
    assert {*range(len(first.tokens), len(prompt) - 1)} <= {*places}
    assert len(places) == len(set(places))
