"""Constrained decoding: the form that an answer must have, and the tokens that may come next in it.

Which tokens those are depends only on the grammar and on the tokens before, so a grammar is one
more thing that target and draft share, like sampling noise, and the text is the same in every mode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

import numpy as np

from mirror_edge.errors import MissingExtraError, OptionError
from mirror_edge.trunk import common

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["KINDS", "Constrain", "Constraint", "Grammar", "constrainer"]

Kind = Literal["json_schema", "regex", "gbnf"]

KINDS: Sequence[Kind] = get_args(Kind)
_CALLED: Mapping[Kind, str] = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "gbnf": "grammar",
}
_SPACE = r"( |\n{1,2}[ \t]{0,20})?"
"""Between the parts of JSON. Without a limit, small models may write nothing else any more."""


@dataclass(frozen=True)
class Grammar:
    """The form of an answer. It needs llguidance: ``pip install 'mirror-edge[grammar]'``."""

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        """Refuse what is no grammar at all.

        Raises:
            OptionError: naming it.
        """
        if self.kind not in KINDS:
            raise OptionError(f"a grammar's kind is {self.kind!r}; it must be {', '.join(KINDS)}.")
        if not isinstance(self.text, str):
            raise OptionError(f"the {_CALLED[self.kind]} is {self.text!r}; it must be a string.")

    @classmethod
    def json(cls, schema: Mapping[str, Any] | str | None = None) -> Self:
        """JSON that fits a JSON schema; by default any object.

        Raises:
            OptionError: for a schema that is not a JSON object.
        """
        try:
            if isinstance(schema, str):
                schema = json.loads(schema)
            schema = {"type": "object"} if schema is None else schema
            if not isinstance(schema, Mapping):
                raise OptionError(f"the JSON schema must be an object, not {schema!r}.")
            return cls("json_schema", json.dumps(dict(schema), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionError(f"the JSON schema is not JSON ({error}).") from None

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """The whole answer matches a regular expression (in Rust's syntax)."""
        return cls("regex", pattern)

    @classmethod
    def gbnf(cls, rules: str) -> Self:
        """The whole answer follows a grammar, in llama.cpp's GBNF or in Lark's notation."""
        return cls("gbnf", rules)


class Constraint:
    """A grammar in one answer: which tokens may come next. For one thread at a time."""

    def __init__(
        self,
        grammar: Grammar,
        begin: Callable[[], LLMatcher],
        eos: Collection[int],
        *,
        guessing: bool,
        begun: LLMatcher | None = None,
    ) -> None:
        """`begin` makes a matcher at the start of an answer, as `begun` is; one of `eos` ends it.

        `guessing` it is asked about texts that the grammar may not allow.
        """
        self.grammar, self.guessing = grammar, guessing
        self._begin, self._eos, self._matcher = begin, eos, begun
        self._known: list[int] = []
        """What the matcher has read."""

    def for_guesses(self) -> Constraint:
        """The same for another thread, with a matcher of its own: one may wear out by guesses."""
        return Constraint(self.grammar, self._begin, self._eos, guessing=True)

    def allowed(self, answer: Sequence[int]) -> NDArray[np.bool_] | None:
        """The tokens that may follow `answer` so far, as a mask [vocabulary or more].

        None where the grammar says nothing: after the end, and for guesses after one that it
        forbids, or once it has become too complex.

        Raises:
            OptionError: for a grammar that cannot be followed any further.
        """
        if self._matcher is None:
            self._matcher = self._begin()
        matcher, answer = self._matcher, list(answer)
        shared = common(self._known, answer)
        if shared < len(self._known):
            matcher.rollback(len(self._known) - shared)
        fits = shared + matcher.try_consume_tokens(answer[shared:])
        self._known = answer[:fits]
        if fits == len(answer):
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            if not matcher.is_error():
                return np.unpackbits(bits, bitorder="little").view(np.bool_)
        if self.guessing or (fits < len(answer) and answer[fits] in self._eos):
            return None
        why = matcher.get_error().strip() or "this model's tokens cannot spell what must come next"
        raise OptionError(f"the {_CALLED[self.grammar.kind]} cannot be followed further: {why}.")


class Constrain(Protocol):
    """Makes the constraints of answers by one model."""

    def __call__(self, grammar: Grammar, vocabulary: int, *, guessing: bool = False) -> Constraint:
        """The constraint of an answer over a `vocabulary` of that size.

        Raises:
            MissingExtraError: without llguidance.
            OptionError: for a grammar that is invalid, or that this model cannot follow.
        """
        ...


def constrainer(tokenizer: Tokenizer, eos: Collection[int]) -> Constrain:
    """Makes the constraints of answers by a model with this tokenizer, which `eos` tokens end."""

    @cache
    def spelled(vocabulary: int) -> LLTokenizer:
        from llguidance import LLTokenizer

        # Some tokenizers have more tokens than their model.
        size = max(vocabulary, tokenizer.get_vocab_size())
        try:
            return LLTokenizer(tokenizer.to_str(), n_vocab=size, eos_token=sorted(eos))
        except ValueError as error:
            raise OptionError(
                f"a grammar cannot be followed with this model's tokenizer ({error}); omit it."
            ) from None

    def constrain(grammar: Grammar, vocabulary: int, *, guessing: bool = False) -> Constraint:
        if not eos:
            raise OptionError("the model has no token that ends an answer; omit the grammar.")
        try:
            import llguidance
        except ImportError:
            raise MissingExtraError(
                "a grammar needs llguidance: pip install 'mirror-edge[grammar]'"
            ) from None
        try:
            begin = partial(llguidance.LLMatcher, spelled(vocabulary), _rules(grammar), log_level=0)
        except ValueError as error:
            raise OptionError(f"the {_CALLED[grammar.kind]} is invalid: {error}") from None
        if (begun := begin()).is_error():
            why = begun.get_error().strip()
            raise OptionError(f"the {_CALLED[grammar.kind]} is invalid: {why}")
        return Constraint(grammar, begin, eos, guessing=guessing, begun=begun)

    return constrain


def _rules(grammar: Grammar) -> str:
    """The grammar in llguidance's own notation."""
    from llguidance import LLMatcher, grammar_from

    if grammar.kind == "json_schema":
        space: Any = {"whitespace_pattern": _SPACE}
        return LLMatcher.grammar_from_json_schema(grammar.text, defaults=space)
    return grammar_from("regex" if grammar.kind == "regex" else "grammar", grammar.text)
