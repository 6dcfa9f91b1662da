"""What a caller passes in and gets back: options, chunks of text, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypedDict

from mirror_edge.answer import Answer
from mirror_edge.decode import decode
from mirror_edge.driving import Parts
from mirror_edge.grammar import Grammar
from mirror_edge.policy import Speculation
from mirror_edge.sampling import Sampling
from mirror_edge.stats import Stats
from mirror_edge.stops import StopStrings
from mirror_edge.text import Message, Text

__all__ = ["AnswerOptions", "Chunk", "Prompt", "Result", "chunks"]

Prompt = str | Sequence[Message]
"""A text to continue, or the messages of a chat to answer."""


class AnswerOptions(TypedDict, total=False):
    """How to answer; each may be omitted."""

    max_new_tokens: int | None
    """None: up to the end of the context."""
    sampling: Sampling
    speculation: Speculation
    stop: Sequence[str]
    """The answer ends before the first of these strings."""
    template: Mapping[str, Any]
    """Variables for the chat template."""
    grammar: Grammar | None
    """The form of the answer; None leaves it free."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: the text that became final, and the tokens it took."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None
    """On the last chunk: `stop` (end of sequence or a stop string) or `length`."""
    stats: Stats
    """Of the whole answer: one object for all its chunks, which is updated at every step."""


@dataclass(frozen=True)
class Result:
    """A whole answer."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    """`stop` (end of sequence or a stop string) or `length`."""
    mode: str
    """The mode that was requested."""
    stats: Stats


def chunks(answer: Answer, text: Text, stops: StopStrings) -> Parts[Chunk]:
    """The answer's steps as text, up to its end or a stop string."""
    stream = text.stream()
    for part in decode(answer):
        if isinstance(part, Future):
            yield part
            continue
        (tokens, reason), emit = part, ""
        for count, token in enumerate(tokens, start=1):
            piece, hit = stops.push(stream.push([token]))
            emit += piece
            if hit:
                # What the same step generated after the stop string is not part of the answer.
                answer.stats.generated_tokens -= len(tokens) - count
                yield Chunk(emit, tuple(tokens[:count]), "stop", answer.stats)
                return
        if reason is not None:
            piece, hit = stops.push(stream.finish())
            emit += piece + ("" if hit else stops.finish())
            yield Chunk(emit, tuple(tokens), "stop" if hit else reason, answer.stats)
        else:
            yield Chunk(emit, tuple(tokens), None, answer.stats)
