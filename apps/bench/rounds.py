"""The measuring: every contender answers a question before the next one is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mirror_edge.apps.bench.contenders import Contender
from mirror_edge.apps.bench.measures import Run
from mirror_edge.apps.bench.questions import Question
from mirror_edge.apps.bench.tally import Tally

if TYPE_CHECKING:
    from mirror_edge.apps.bench.energy import Meter
    from mirror_edge.text import Message, Text

__all__ = ["converse", "fits", "rounds"]

_SPARE = 8
"""Rows at the end of the context that a padded window may write to."""


def rounds(
    questions: Sequence[Question],
    contenders: Sequence[Contender],
    repeat: int,
    most: int,
    meter: Meter | None,
) -> Iterator[Run]:
    """All questions `repeat` times; the order rotates from round to round."""
    turn = 0
    for number in range(repeat):
        for question in questions:
            for place in range(len(contenders)):
                yield converse(
                    question, contenders[(turn + place) % len(contenders)], number, most, meter
                )
            turn += 1


def converse(
    question: Question, contender: Contender, repeat: int, most: int, meter: Meter | None
) -> Run:
    """One contender's answers to all turns of a question, of at most `most` tokens per turn."""
    contender.forget()
    messages: list[Message] = []
    said = []
    before = meter.read() if meter else ()
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        said.append(contender.answer(messages, most))
        messages.append({"role": "assistant", "content": said[-1].text})
    return Run(
        question=question.number,
        group=question.group,
        repeat=repeat,
        contender=contender.name,
        tokens=sum(len(one.tokens) for one in said),
        seconds=sum(one.seconds for one in said),
        first_token=said[0].first_token,
        decode_tokens=sum(len(one.tokens) - 1 for one in said),
        decode_seconds=sum(one.decode_seconds for one in said),
        tally=Tally.sum(one.tally for one in said),
        said=tuple(token for one in said for token in one.tokens),
        joules=meter.joules(before, meter.read()) if meter else None,
    )


def fits(question: Question, text: Text, context: int, most: int) -> bool:
    """Whether the whole conversation has room, if every answer is as long as it may be."""
    messages: list[Message] = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        messages.append({"role": "assistant", "content": ""})
    asked = len(text.encode_chat(messages[:-1]))
    return asked + most * len(question.turns) <= context - _SPARE
