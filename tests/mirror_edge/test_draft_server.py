"""The draft's end of the wire, over a scripted draft."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror_edge.draft_server import serve
from mirror_edge.grammar import Constraint
from mirror_edge.hypotheses import Root
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.scripted import ScriptedDraft, random_language
from mirror_edge.sampling import Sampling
from mirror_edge.trace import Trace
from mirror_edge.wire import Asked, Kind, Message, Wire

VOCABULARY = 24
DRAFT = ScriptedDraft(random_language(2, VOCABULARY), VOCABULARY)


def no_form(*_: object) -> Constraint:
    raise AssertionError("no grammar was asked for")


@pytest.mark.parametrize(
    ("call", "wanted", "lengths"),
    [
        (2, Root(0, 8), [4]),
        (2, (), []),
        (1, (), [4, 4, 4]),
    ],
    ids=["all but one", "all", "another call's"],
)
def test_what_is_dropped_is_not_drafted_any_more(
    call: int, wanted: tuple[int, ...], lengths: list[int]
) -> None:
    asked = Asked([], [], [Root(0, 7), Root(0, 8), Root(0, 9)], 4, Sampling(), VOCABULARY)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours)
        wire.send(Message(Kind.PREFILL, 1, [3, 1, 4], (60.0,)))
        wire.send(asked.message(2, 60.0))
        wire.send(Message(Kind.DROP, call, wanted))
        with ThreadPoolExecutor(1) as child:
            served = child.submit(serve, Wire(theirs), ModelDrafter(DRAFT), Trace(), no_form)
            wire.receive(60.0)
            try:
                branches = asked.answered(wire.receive(60.0))
            finally:
                wire.end()
        assert isinstance(served.exception(), EOFError)
    assert [len(tokens) for _, tokens in branches] == lengths
