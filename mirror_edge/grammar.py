"""Constrained decoding: the form that an answer must have, and the tokens that may come next in it.

Which tokens those are depends only on the grammar and on the tokens before, so a grammar is one
more thing that target and draft share, like sampling noise, and the text is the same in every mode.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from mirror_edge.errors import MissingExtraError, OptionError
from mirror_edge.trunk import common

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["KINDS", "Constrain", "Constraint", "Grammar", "constrainer"]

Kind = Literal["json_schema", "regex", "gbnf"]

KINDS: Sequence[Kind] = ("json_schema", "regex", "gbnf")
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

    @classmethod
    def json(cls, schema: Mapping[str, Any] | str | None = None) -> Self:
        """JSON that fits a JSON schema; by default any object.

        Raises:
            OptionError: for a schema that is not a JSON object.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise OptionError(f"the JSON schema is not JSON ({error}).") from None
        schema = {"type": "object"} if schema is None else schema
        if not isinstance(schema, Mapping):
            raise OptionError(f"the JSON schema must be an object, not {schema!r}.")
        return cls("json_schema", json.dumps(schema))

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """The whole answer matches a regular expression (in Rust's syntax)."""
        return cls("regex", pattern)

    @classmethod
    def gbnf(cls, rules: str) -> Self:
        """The whole answer follows a grammar, in llama.cpp's GBNF or in Lark's notation."""
        return cls("gbnf", rules)


class Constraint:
    """A grammar in one answer: which tokens may come next."""

    def __init__(self, grammar: Grammar, matcher: LLMatcher) -> None:
        """`matcher` follows the answer from its first token, by the `grammar`."""
        self.grammar, self._begun = grammar, matcher
        # Both lanes' threads ask, about texts of their own.
        self._own = threading.local()

    def allowed(self, answer: Sequence[int]) -> NDArray[np.bool_] | None:
        """The tokens that may follow `answer` so far, as a mask [vocabulary or more].

        None where all may, since a guess broke the grammar already.

        Raises:
            OptionError: for a grammar that has become too complex to be followed.
        """
        try:
            matcher, known = self._own.matcher, self._own.known
        except AttributeError:
            matcher, known = self._begun.deep_copy(), []
            self._own.matcher = matcher
        answer = list(answer)
        shared = common(known, answer)
        if shared < len(known):
            matcher.rollback(len(known) - shared)
        fits = shared + matcher.try_consume_tokens(answer[shared:])
        self._own.known = answer[:fits]
        if fits < len(answer):
            return None
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            raise OptionError(f"the grammar cannot be followed: {matcher.get_error().strip()}")
        return np.unpackbits(bits, bitorder="little").view(np.bool_)


Constrain = Callable[[Grammar, int], Constraint]
"""Makes the constraint of an answer, of its grammar and the size of the vocabulary."""


def constrainer(tokenizer: Tokenizer, eos: Collection[int]) -> Constrain:
    """Makes the constraints of answers by a model with this tokenizer, which `eos` tokens end."""

    @cache
    def spelled(vocabulary: int) -> LLTokenizer:
        from llguidance import LLTokenizer

        try:
            return LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=sorted(eos))
        except ValueError as error:
            raise OptionError(
                f"a grammar cannot be followed with this model's tokenizer ({error}); omit it."
            ) from None

    def constrain(grammar: Grammar, vocabulary: int) -> Constraint:
        if not eos:
            raise OptionError("the model has no token that ends an answer; omit the grammar.")
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise MissingExtraError(
                "a grammar needs llguidance: pip install 'mirror-edge[grammar]'"
            ) from None
        spelling, called = spelled(vocabulary), _CALLED[grammar.kind]
        try:
            rules = _rules(grammar)
        except ValueError as error:
            raise OptionError(f"the {called} is invalid: {error}") from None
        wrong, messages = LLMatcher.validate_grammar_with_warnings(rules, spelling)
        if wrong:
            raise OptionError(f"the {called} is invalid: {messages[0].strip()}")
        return Constraint(grammar, LLMatcher(spelling, rules))

    return constrain


def _rules(grammar: Grammar) -> str:
    """The grammar in llguidance's own notation."""
    from llguidance import LLMatcher, grammar_from

    if grammar.kind == "json_schema":
        space: Any = {"whitespace_pattern": _SPACE}
        return LLMatcher.grammar_from_json_schema(grammar.text, defaults=space)
    return grammar_from("regex" if grammar.kind == "regex" else "grammar", grammar.text)
