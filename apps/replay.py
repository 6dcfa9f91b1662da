"""Mirror steps run sequentially, recording what each of them decided.

Windows, roots and verdicts are those of mode `mirror`: a branch that comes true is what a fresh
draft would be (in float32; elsewhere rounding may flip a near tie). So one replay shows what any
root budget would have prepared for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.answer import Answer, Decoder
from mirror_edge.apps.record import DEPTHS, Record
from mirror_edge.growth import embedded
from mirror_edge.hypotheses import ExitSignal, Root, choose_roots
from mirror_edge.policy import Speculation, resolve
from mirror_edge.rollout import ModelDrafter
from mirror_edge.verify import Verdict, verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.protocols import DraftGraph
    from mirror_edge.sampling import Sampler

__all__ = ["Replayer"]

_ROWS = 64
"""Rows of the draft that are evaluated together."""


@dataclass(frozen=True)
class Replayer:
    """A target and its draft, and how they take their steps."""

    on: Decoder
    graph: DraftGraph
    asked: Speculation
    """Its window and candidates; roots are ranked without a budget."""
    eos: frozenset[int]

    def answer(
        self, prompt: Sequence[int], new_tokens: int, sampler: Sampler, into: Record
    ) -> list[int]:
        """The tokens of the answer to `prompt`; what its steps decided goes `into` the record."""
        strategy = resolve(self.asked, can_draft=True)
        limit = min(len(prompt) + new_tokens, self.on.target.context)
        drafter = ModelDrafter(self.graph)
        answer = Answer(
            self.on, list(prompt), strategy, sampler, drafter, self.eos, limit, TIMEOUT_MAX
        )
        answer.reuse()
        answer.draft.read(answer.tokens)
        while (first := answer.prefill()) is None:
            pass
        answer.draft_after(Verdict(0, first))
        answer.commit(Verdict(0, first), None)
        logits: list[NDArray[np.float32]] = []
        while answer.finish_reason is None:
            rows = self._step(answer, into)
            if sampler.sampling.temperature > 0.0:
                logits.append(rows)
        self.on.trace.take()
        if len(answer.tokens) > len(prompt) + 1:
            there = np.concatenate(logits) if logits else None
            self._predictions(answer.tokens, len(prompt) + 1, there, sampler, into)
        return answer.tokens[len(prompt) :]

    def _step(self, answer: Answer, into: Record) -> NDArray[np.float32]:
        """One step; the target's logits for every token that it committed."""
        plan, sampler = answer.plan, answer.sampler
        answer.await_draft()
        drafted, position, room = answer.drafted, len(answer.tokens), answer.room
        pool = plan.pool(sampler.sampling)
        signal = answer.prefix(max(pool, DEPTHS[-1]))
        assert signal is not None
        asked = ExitSignal(signal.ids[:, :pool], signal.logprobs[:, :pool])
        roots = choose_roots(asked, drafted, position, plan.candidates, answer.agreement, sampler)
        logits = self.on.target.suffix()
        verdict = verify(logits, answer.tokens, drafted, sampler)
        answer.draft_after(verdict)
        said = answer.commit(verdict, None)
        into.proposed.append(len(drafted))
        into.accepted.append(verdict.accepted)
        into.committed.append(len(said))
        if room > 2:  # else there is no next window to prepare for
            into.places += _ranks([roots], [Root(*verdict)])
        into.plain_ranks += _ranks(signal.ids.tolist(), said)
        into.ranks += _ranks(_ordered(signal, position, sampler).tolist(), said)
        return logits[: len(said)].copy()

    def _predictions(
        self,
        tokens: Sequence[int],
        start: int,
        logits: NDArray[np.float32] | None,
        sampler: Sampler,
        into: Record,
    ) -> None:
        """What the draft predicts at `start`… of the text `tokens`; this overwrites its cache.

        `logits` are the target's at these positions; without them there is nothing to sample from.
        """
        drafter = ModelDrafter(self.graph)
        text, width = np.array(tokens), min(self.graph.vocabulary, sampler.vocabulary)
        for first in range(start, len(text), _ROWS):
            if first == start or len(text) > self.graph.main:
                drafter.prefill(tokens[: first - 1])
            places = np.arange(first, min(first + _ROWS, len(text)))
            said, rows = text[places], np.arange(len(places))
            fed = embedded(self.graph, tokens[first - 1 : places[-1]])
            slot = first - 1 - drafter.forgotten
            found = self.graph.forward(fed, places - 1, slot, None, rows)[:, :width]
            into.shared += (sampler.choose(found, places.tolist()) == said).tolist()
            into.greedy += (found.argmax(axis=-1) == said).tolist()
            if logits is not None:
                draft = _chances(found, sampler)
                target = _chances(logits[places - start], sampler)[:, :width]
                known = said < width
                into.independent += (draft[rows, np.where(known, said, 0)] * known).tolist()
                into.common += np.minimum(draft, target).sum(axis=-1).tolist()


def _ordered(signal: ExitSignal, position: int, sampler: Sampler) -> NDArray[np.int64]:
    """The candidates of every row, best first under the noise."""
    positions = range(position, position + len(signal.ids))
    scores = sampler.scores(signal.ids, signal.logprobs, positions)
    order = np.argsort(-scores, axis=-1, kind="stable")
    return np.take_along_axis(signal.ids, order, axis=-1)


def _ranks(lists: Sequence[Sequence[object]], wanted: Sequence[object]) -> list[int | None]:
    """The index of each wanted entry in its list."""
    return [
        entries.index(entry) if entry in entries else None
        for entries, entry in zip(lists, wanted, strict=False)
    ]


def _chances(logits: NDArray[np.float32], sampler: Sampler) -> NDArray[np.float32]:
    scaled = logits / np.float32(sampler.sampling.temperature)
    weights: NDArray[np.float32] = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights
