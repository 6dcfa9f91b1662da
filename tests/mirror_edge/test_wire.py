"""What crosses to a draft in another process, and what is made of garbage."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_edge.grammar import Grammar
from mirror_edge.hypotheses import Branch, Root
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.wire import Asked, Form, Kind, Message, Wire, WireError, in_line

VOCABULARY = 50
IDS = st.integers(0, VOCABULARY - 1)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
MESSAGES = st.builds(
    Message,
    st.sampled_from(Kind),
    st.integers(0, 2**32 - 1),
    st.lists(NUMBERS, max_size=30),
    st.lists(FLOATS, max_size=8),
)
ROOTS = st.lists(st.builds(Root, st.integers(0, 5), IDS), min_size=1, max_size=6, unique=True)


@pytest.fixture
def wires() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire and the bare other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Wire(ours), theirs


def sent(messages: list[Message]) -> bytes:
    """As bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for message in messages:
            Wire(ours).send(message)
        ours.close()
        return b"".join(iter(lambda: theirs.recv(65536), b""))


@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
@settings(deadline=None, max_examples=50)
def test_messages_arrive_whole_however_they_were_cut(
    messages: list[Message], data: st.DataObject
) -> None:
    content = sent(messages)
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content))))})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pieces = [content[a:b] for a, b in pairwise(cuts)]
        sender = threading.Thread(target=lambda: [theirs.sendall(piece) for piece in pieces])
        sender.start()
        wire = Wire(ours)
        arrived = [wire.receive(5.0) for _ in messages]
        sender.join()
        assert arrived == messages
        assert not wire.arrived()


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=100)
def test_garbage_is_refused_or_not_enough(content: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(content)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises((WireError, EOFError)):
            Wire(ours).receive(5.0)


def test_half_a_message_is_not_waited_for_beyond_the_time(
    wires: tuple[Wire, socket.socket],
) -> None:
    wire, other = wires
    other.sendall(sent([Message(Kind.DONE, 1, range(5))])[:-1])
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(0.1)
    assert 0.09 < time.monotonic() - began < 2.0


def test_who_does_not_read_is_not_waited_for(wires: tuple[Wire, socket.socket]) -> None:
    wire, _ = wires
    with pytest.raises(TimeoutError):
        wire.send(Message(Kind.PREFILL, 1, [7] * 1_000_000), 0.1)


def test_messages_of_two_threads_arrive_whole(wires: tuple[Wire, socket.socket]) -> None:
    wire, other = wires
    wire._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    large = Message(Kind.DONE, 1, [7] * 5000, [])
    threads = [
        threading.Thread(target=lambda: [wire.send(large) for _ in range(20)]) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    reader = Wire(other)
    assert all(reader.receive(10.0) == large for _ in range(40))
    for thread in threads:
        thread.join()


def test_the_end_is_heard_by_whoever_waits(wires: tuple[Wire, socket.socket]) -> None:
    wire, _ = wires
    threading.Timer(0.05, wire.end).start()
    with pytest.raises(EOFError):
        wire.receive(5.0)


def test_a_reason_crosses_as_it_was_said() -> None:
    said = "Gerät weg: 0x8007"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Wire(ours).send(Message.text(Kind.FAILED, 3, said))
        assert Wire(theirs).receive().as_text() == said


@pytest.mark.parametrize(
    "grammar", [None, Grammar.regex("ä+ 🦊"), Grammar.json({"a": "ß"}), Grammar.gbnf("")]
)
def test_a_form_crosses_as_it_was_meant(grammar: Grammar | None) -> None:
    form, (ours, theirs) = Form(grammar, VOCABULARY), socket.socketpair()
    with ours, theirs:
        Wire(ours).send(form.message(3, 2.5))
        message = Wire(theirs).receive()
    assert (message.kind, message.call, message.floats[0]) == (Kind.FORM, 3, 2.5)
    assert Form.of(message) == form


@given(
    st.lists(IDS, max_size=6),
    st.lists(IDS, max_size=4),
    ROOTS,
    st.integers(1, 7),
    st.integers(),
    st.integers(0, 10**30),
)
@settings(deadline=None)
def test_a_rollout_is_asked_for_as_it_was_meant(
    committed: list[int], drafted: list[int], roots: list[Root], depth: int, seed: int, top_k: int
) -> None:
    sampling = Sampling(0.7, top_k, 0.9, 0.05, 1.2, 0.4, -0.3, seed)
    asked = Asked(committed, drafted, roots, depth, sampling, VOCABULARY, 5)
    message = asked.message(4, 2.5)
    arrived = Asked.of(message)
    assert (message.call, message.floats[0]) == (4, 2.5)
    assert arrived._replace(sampling=sampling) == asked
    # The noise is the same, though only the seed's last 64 bits crossed.
    theirs = Sampler(arrived.sampling, VOCABULARY)
    assert (theirs.noise(9) == Sampler(sampling, VOCABULARY).noise(9)).all()
    assert arrived.sampling.top_k == min(top_k, VOCABULARY)


@given(ROOTS, st.data())
@settings(deadline=None)
def test_branches_arrive_as_they_were_sent(roots: list[Root], data: st.DataObject) -> None:
    asked = Asked([], [], roots, 3, Sampling(), VOCABULARY)
    lengths = st.lists(IDS, min_size=1, max_size=3)
    answered = [root for root in roots if data.draw(st.booleans())]
    branches = [Branch(root, tuple(data.draw(lengths))) for root in answered]
    assert asked.answered(Message(Kind.DONE, 1, in_line(branches))) == branches


@given(ROOTS, st.lists(st.integers(-2, VOCABULARY + 2) | NUMBERS, max_size=12))
@settings(deadline=None, max_examples=300)
def test_any_other_answer_is_nonsense(roots: list[Root], ints: list[int]) -> None:
    asked = Asked([], [], roots, 3, Sampling(), VOCABULARY)
    try:
        branches = asked.answered(Message(Kind.DONE, 1, ints))
    except WireError:
        return
    assert len({branch.root for branch in branches}) == len(branches)
    for root, tokens in branches:
        assert root in roots
        assert 0 < len(tokens) <= 3
        assert all(0 <= token < VOCABULARY for token in tokens)


@pytest.mark.parametrize(
    ("ints", "said"),
    [
        ([0, 7], "a truncated branch"),
        ([0, 8, 1, 1], "not asked for"),
        ([0, 7, 1, 1, 0, 7, 1, 1], "not asked for"),
        ([0, 7, 2, 1], "2 tokens"),
        ([0, 7, 4, 1, 1, 1, 1], "4 tokens"),
        ([0, 7, 0], "0 tokens"),
        ([0, 7, -1], "-1 tokens"),
        ([0, 7, 1, VOCABULARY], "outside the vocabulary of 50"),
        ([0, 7, 1, -1], "outside the vocabulary of 50"),
    ],
)
def test_nonsense_is_named(ints: list[int], said: str) -> None:
    asked = Asked([], [], [Root(0, 7)], 3, Sampling(), VOCABULARY)
    with pytest.raises(WireError, match=said):
        asked.answered(Message(Kind.DONE, 1, ints))


def test_a_review_arrives_as_it_was_sent() -> None:
    asked = Asked([3, 1, 4], (), (), 2, Sampling(0.7, seed=3), VOCABULARY)
    message = asked.message(2, 9.0, Kind.REVIEW)
    arrived = Asked.of(message)
    assert message.kind is Kind.REVIEW
    assert (arrived.committed, arrived.depth, arrived.roots) == ([3, 1, 4], 2, [])
    assert asked.reviewed(Message(Kind.DONE, 2, [True, False])) == [True, False]
    assert asked.reviewed(Message(Kind.DONE, 2)) == []


@pytest.mark.parametrize("ints", [[2], [-1, 0], [1, 1, 1]])
def test_a_review_of_anything_else_is_nonsense(ints: list[int]) -> None:
    asked = Asked([3, 1, 4], (), (), 2, Sampling(), VOCABULARY)
    with pytest.raises(WireError, match="review"):
        asked.reviewed(Message(Kind.DONE, 2, ints))
