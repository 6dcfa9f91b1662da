"""Answers of a given form: only what the grammar allows, and one text in every mode."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel

import mirror_edge
from mirror_edge import Grammar, Model, Sampling, Speculation, answer, bundle
from mirror_edge.errors import MissingExtraError, OptionError
from mirror_edge.grammar import Constraint, constrainer
from mirror_edge.hypotheses import ExitSignal, Root, choose_roots, possible
from mirror_edge.sampling import Sampler
from mirror_edge.text import Text

STORY = [{"role": "user", "content": "Tell me a story about a fox."}]
CARD = Grammar.json(
    {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 20},
            "animal": {"enum": ["fox", "hen", "owl"]},
            "age": {"type": "integer", "minimum": 1, "maximum": 20},
        },
        "required": ["title", "animal", "age"],
        "additionalProperties": False,
    }
)
WORDS = Grammar.regex("(ab|ba)+c?")
MODES = ("ar", "sd", "mirror", "auto")


@pytest.fixture(scope="module")
def text() -> Text:
    return Text.read(bundle.demo())


@pytest.fixture(scope="module")
def apart() -> Iterator[Model]:
    """With the draft in a process of its own."""
    with mirror_edge.load(target_threads=1, draft_process=True) as model:
        yield model


def card(said: str) -> dict[str, Any]:
    """The answer, whose form is checked without the library that made it."""
    found: dict[str, Any] = json.loads(said)
    assert list(found) == ["title", "animal", "age"]
    assert len(found["title"]) <= 20
    assert found["animal"] in {"fox", "hen", "owl"}
    assert 1 <= found["age"] <= 20
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", ["model", "ngram", "random"])
def test_an_answer_has_its_form_and_is_one_text_in_every_mode(
    demo: Model, with_random_draft: Model, temperature: float, drafter: str
) -> None:
    model = with_random_draft if drafter == "random" else demo
    for seed in range(3):
        said = {
            model.generate(
                STORY,
                max_new_tokens=160,
                sampling=Sampling(temperature, seed=seed),
                speculation=Speculation(
                    mode=mode, drafter="ngram" if drafter == "ngram" and mode != "ar" else None
                ),
                grammar=CARD,
            ).text
            for mode in MODES
        }
        assert len(said) == 1
        card(said.pop())


@pytest.mark.parametrize("process", [False, True])
def test_the_draft_follows_the_grammar_too(demo: Model, apart: Model, process: bool) -> None:
    """Or it would be rejected wherever the grammar forces a token that it would not choose."""
    for forced in ("quartz-vexing-jumps-fjord", "Äpfel? 🦊 Nein!"):
        result = (apart if process else demo).generate(
            STORY,
            max_new_tokens=100,
            grammar=Grammar.regex(re.escape(forced)),
            speculation=Speculation(mode="sd", window=4, drafter="model"),
        )
        assert result.text == forced
        figures = result.stats.as_dict()
        assert figures["acceptance_rate"] == 1.0 or figures["draft_lapses"]
        assert not result.stats.draft_losses


def test_an_answer_without_a_form_may_follow_one_with(demo: Model, apart: Model) -> None:
    free: Any = {"max_new_tokens": 40, "speculation": Speculation(mode="sd", drafter="model")}
    before = apart.generate(STORY, **free)
    apart.generate(STORY, grammar=WORDS, **free)
    again = apart.generate(STORY, **free)
    accepted = [[step.accepted for step in said.stats.steps] for said in (before, again)]
    assert accepted[0] == accepted[1] or again.stats.draft_lapses or before.stats.draft_lapses
    assert again.tokens == demo.generate(STORY, **free).tokens


@pytest.mark.parametrize("grammar", [CARD, Grammar.regex("quartz-vexing-jumps-fjord")])
def test_mirror_prepares_for_allowed_outcomes_only(
    demo: Model, text: Text, grammar: Grammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[tuple[int, tuple[int, ...], list[Root]]] = []

    def spied(signal: ExitSignal, drafted: tuple[int, ...], place: int, *more: Any) -> list[Root]:
        roots = choose_roots(signal, drafted, place, *more)
        prepared.append((place, drafted, roots))
        return roots

    monkeypatch.setattr(answer, "choose_roots", spied)
    result = demo.generate(
        STORY,
        max_new_tokens=120,
        grammar=grammar,
        speculation=Speculation(mode="mirror", window=3, candidates=4, branches="all"),
    )
    said, begin = list(result.tokens), result.stats.prompt_tokens
    constraint, count = text.constrain(grammar, 4096).for_guesses(), 0
    for place, drafted, roots in prepared:
        for row, token in roots:
            allowed = constraint.allowed([*said[: place - begin], *drafted[:row]])
            assert allowed is None or allowed[token]
            count += allowed is not None
    assert count
    if grammar.kind == "regex":
        assert result.stats.as_dict()["hit_rate"] == 1.0


HARD = Grammar.gbnf(
    r"""start: X
X: /(.|\n)*a.{40}b(.|\n)*/ & /(.|\n)*b.{47}c(.|\n)*/ & ~/.*abc.*/"""
)
"""Guesses, each of which opens new states, are more than its follower has room for."""


def test_guesses_wear_out_no_other_lanes_grammar(demo: Model) -> None:
    said = set[tuple[int, ...]]()
    for mode in ("ar", "sd", "mirror", "mirror"):
        result = demo.generate(
            STORY,
            max_new_tokens=60,
            grammar=HARD,
            sampling=Sampling(0.9, seed=1),
            speculation=Speculation(mode=mode, drafter=None if mode == "ar" else "model"),
        )
        assert result.finish_reason == "length"
        said.add(result.tokens)
    assert len(said) == 1


def test_a_draft_in_its_own_process_answers_the_same(demo: Model, apart: Model) -> None:
    asked: Any = {"max_new_tokens": 120, "grammar": CARD, "sampling": Sampling(0.5, seed=2)}
    said = apart.generate(STORY, speculation=Speculation(mode="mirror"), **asked)
    assert said.text == demo.generate(STORY, **asked).text
    assert not said.stats.draft_losses


def test_filters_and_penalties_keep_to_the_form(demo: Model) -> None:
    sampling = Sampling(1.3, top_k=3, top_p=0.5, min_p=0.05, repetition_penalty=1.3, seed=4)
    said = {
        demo.generate(
            STORY,
            max_new_tokens=160,
            sampling=sampling,
            speculation=Speculation(mode=mode),
            grammar=CARD,
        ).text
        for mode in MODES
    }
    assert len(said) == 1
    card(said.pop())


def test_rules_in_either_notation_are_followed(demo: Model) -> None:
    gbnf = 'root ::= "the " ("fox" | "hen") " and " ("fox" | "hen")'
    lark = 'start: "the " ANIMAL " and " ANIMAL\nANIMAL: "fox" | "hen"'
    said = {demo.generate(STORY, grammar=Grammar.gbnf(rules)).text for rules in (gbnf, lark)}
    assert len(said) == 1
    assert re.fullmatch("the (fox|hen) and (fox|hen)", said.pop())


def test_any_object_will_do_where_there_is_no_schema(demo: Model) -> None:
    result = demo.generate(STORY, max_new_tokens=300, grammar=Grammar.json())
    assert result.text.startswith("{")
    if result.finish_reason == "stop":
        assert isinstance(json.loads(result.text), dict)


def histories(text: Text) -> st.SearchStrategy[list[list[int]]]:
    """Texts to be continued, most of them allowed, in any order."""
    pieces = [text.encode(piece, add_special_tokens=False) for piece in ("ab", "ba", "c", "x")]
    one = st.lists(st.sampled_from(pieces[:2] * 3 + pieces[2:]), max_size=6)
    return st.lists(one.map(lambda some: [token for piece in some for token in piece]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_allowed_depends_on_the_text_alone(text: Text, data: st.DataObject) -> None:
    """Whatever was asked before, and whichever of it was no continuation."""
    shared = text.constrain(WORDS, 4096).for_guesses()
    for history in data.draw(histories(text)):
        found = shared.allowed(history)
        fresh = text.constrain(WORDS, 4096).for_guesses().allowed(history)
        assert (found is None) == (fresh is None)
        if found is not None and fresh is not None:
            assert (found == fresh).all()


def test_the_allowed_tokens_are_those_that_continue_the_text(text: Text) -> None:
    constraint = text.constrain(Grammar.regex("fox|foxes|fjord"), 4096)
    allowed = constraint.allowed(text.encode("fo", add_special_tokens=False))
    assert allowed is not None
    found = {text.decode([token]) for token in np.flatnonzero(allowed)}
    assert found == {piece for piece in ("x", "xe", "xes") if text.tokenizer.token_to_id(piece)}


def test_an_answer_may_end_only_where_its_form_is_complete(text: Text) -> None:
    constraint = text.constrain(Grammar.regex("abc"), 4096)
    ends = sorted(text.eos)
    for said, complete in (("ab", False), ("abc", True)):
        allowed = constraint.allowed(text.encode(said, add_special_tokens=False))
        assert allowed is not None
        assert (allowed[ends] == complete).all()
        assert complete == (np.flatnonzero(allowed).tolist() == ends)


def test_the_prompt_is_free_and_so_is_what_follows_a_broken_guess(text: Text) -> None:
    sampler = Sampler(Sampling(), 4096, 3, text.constrain(WORDS, 4096)).for_guesses()
    assert sampler.allowed([1, 2]) is None
    assert sampler.allowed([1, 2, 3]) is not None
    assert sampler.allowed([1, 2, 3, *text.encode("x", add_special_tokens=False)]) is None


class Only(Constraint):
    """Allows the same few tokens everywhere."""

    def __init__(self, tokens: list[int], *, guessing: bool = False) -> None:
        self._tokens, self.guessing = tokens, guessing

    def allowed(self, answer: object) -> Any:  # noqa: ARG002
        mask = np.zeros(64, dtype=np.bool_)
        mask[self._tokens] = True
        return mask


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=40, max_size=40),
    st.sets(st.integers(0, 39), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.9]),
)
def test_a_constraint_leaves_the_contest_of_the_allowed_tokens_as_it_is(
    row: list[float], tokens: set[int], temperature: float
) -> None:
    sampling, among = Sampling(temperature, seed=3), sorted(tokens)
    logits = np.array([row], dtype=np.float32)
    chosen = Sampler(sampling, 40, 0, Only(among)).choose(logits, [7], [[]])
    contest = logits[0]
    if temperature:
        contest = contest / np.float32(temperature) + Sampler(sampling, 40).noise(7)
    assert chosen[0] == among[int(contest[among].argmax())]


def test_a_draft_that_knows_no_allowed_token_guesses_freely() -> None:
    only = Only([50], guessing=True)
    sampler = Sampler(Sampling(), 64, 0, only)
    logits = np.arange(8, dtype=np.float32)[None]
    assert sampler.choose(logits, [0], [[]]) == [7]
    assert Sampler(Sampling(0.7, top_p=0.5), 64, 0, only).choose(logits, [0], [[]]) < 8
    with pytest.raises(OptionError, match="a token that this model does not have"):
        Sampler(Sampling(), 64, 0, Only([50])).choose(logits, [0], [[]])


def test_forbidden_candidates_are_no_outcomes() -> None:
    signal = ExitSignal(
        np.array([[1, 2, 3], [4, 5, 6]]),
        np.log(np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], dtype=np.float32)),
    )
    left = possible(signal, [9], [1], Sampler(Sampling(), 64, 0, Only([2, 3])))
    roots = choose_roots(left, [1], 1, 3, 0.5, Sampler(Sampling(), 64))
    assert {root for root in roots if root.row == 0} == {Root(0, 2), Root(0, 3)}
    assert {root.token for root in roots if root.row == 1} == {2, 3}  # None of them was allowed.


def bytes_of(letters: str) -> Tokenizer:
    """A tokenizer of single bytes, with only these letters."""
    tokens = {"end": 0} | {letter: at for at, letter in enumerate(letters, 1)}
    found = Tokenizer(BPE(tokens, []))
    found.decoder = ByteLevelDecoder()
    found.add_special_tokens(["end"])
    return found


def test_a_form_that_the_models_tokens_cannot_spell_ends_the_answer() -> None:
    constraint = constrainer(bytes_of("abcd"), {0})(Grammar.regex("aZb"), 5)
    constraint.allowed([1])
    with pytest.raises(OptionError, match="regular expression cannot be followed further"):
        constraint.allowed([1, 2])
    assert constraint.for_guesses().allowed([1, 2]) is None


def test_a_tokenizer_may_have_more_tokens_than_its_model() -> None:
    allowed = constrainer(bytes_of("abcdefgh"), {0})(Grammar.regex("[ah]"), 5).allowed([])
    assert allowed is not None
    assert np.flatnonzero(allowed).tolist() == [1, 8]


def test_nothing_is_asked_after_the_end(text: Text) -> None:
    constraint = text.constrain(Grammar.regex("abc"), 4096)
    said = text.encode("abc", add_special_tokens=False)
    for end in sorted(text.eos):
        assert constraint.allowed([*said, end]) is None
        assert constraint.allowed([*said, end, 7]) is None


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("json_schema", '{"type": "frob"}'), "JSON schema is invalid: .*frob"),
        (Grammar.json({"not": {"type": "string"}}), 'JSON schema is invalid: .*"not"'),
        (Grammar.regex("(ab"), "regular expression is invalid: .*unclosed group"),
        (Grammar.gbnf("root ::= nothing"), "grammar is invalid: .*nothing"),
        ("{}", "grammar is '{}'; it must be a Grammar"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(
    demo: Model, grammar: Grammar, message: str
) -> None:
    with pytest.raises(OptionError, match=re.compile(message, re.DOTALL)):
        demo.generate(STORY, grammar=grammar)


@pytest.mark.parametrize(
    "schema", ["{", "[]", '"word"', "[" * 100_000, {"const": {1, 2}}, {"const": float("nan")}, 5]
)
def test_a_schema_that_is_no_object_is_refused(schema: Any) -> None:
    with pytest.raises(OptionError, match="the JSON schema"):
        Grammar.json(schema)


@pytest.mark.parametrize(("kind", "rules"), [("xml", "<a/>"), ("regex", 5)])
def test_what_is_no_grammar_at_all_is_refused(kind: Any, rules: Any) -> None:
    with pytest.raises(OptionError, match=r"it must be"):
        Grammar(kind, rules)


def test_any_mapping_may_be_a_schema(demo: Model) -> None:
    schema = MappingProxyType({"const": "fox"})
    assert demo.generate(STORY, grammar=Grammar.json(schema)).text == '"fox"'


def test_what_a_grammar_needs_is_named(
    demo: Model, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match="no token that ends an answer"):
        constrainer(text.tokenizer, frozenset())(WORDS, 4096)
    words = Tokenizer(WordLevel({"word": 0, "end": 1}, unk_token="word"))
    with pytest.raises(OptionError, match="cannot be followed with this model's tokenizer"):
        constrainer(words, {1})(WORDS, 2)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"mirror-edge\[grammar\]"):
        demo.generate(STORY, grammar=WORDS)


def test_two_schemas_may_share_a_model(demo: Model) -> None:
    for word in ("fox", "hen"):
        assert demo.generate(STORY, grammar=Grammar.json({"const": word})).text == f'"{word}"'
    assert demo.generate(STORY, max_new_tokens=8).text[0] != '"'
