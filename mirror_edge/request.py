"""A request to a model: checked as a whole, before any device is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirror_edge.answer import Answer
from mirror_edge.errors import ContextError, OptionError
from mirror_edge.experience import LONGEST_MATCH
from mirror_edge.grammar import Grammar
from mirror_edge.ngram import Lookup
from mirror_edge.pair import Pair
from mirror_edge.policy import Speculation, Strategy, choices, resolve
from mirror_edge.result import AnswerOptions, Prompt
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.text import Text
from mirror_edge.values import require_whole

__all__ = ["answer_to", "tokens_of"]

_RESERVED = ("self", "messages", "add_generation_prompt")


def tokens_of(prompt: Prompt, text: Text, template: Mapping[str, Any] | None) -> list[int]:
    """The tokens of a prompt; messages go through the chat template.

    Raises:
        OptionError: for invalid template variables.
        TemplateError: for messages that the chat template refuses.
    """
    if isinstance(prompt, str):
        if template:
            raise OptionError(
                "template variables need messages; a plain text prompt has no template."
            )
        return text.encode(prompt, add_special_tokens=True)
    if not isinstance(template, Mapping | None):
        raise OptionError(f"template is {template!r}; it must be a mapping of variables.")
    for name in template or {}:
        if not isinstance(name, str):
            raise OptionError(f"template variable {name!r} must have a string as its name.")
        if name in _RESERVED:
            raise OptionError(f"template variable {name!r} is reserved.")
    return text.encode_chat(prompt, **(template or {}))


def answer_to(tokens: list[int], text: Text, pair: Pair, options: AnswerOptions) -> Answer:
    """The answer to a prompt of these tokens, ready to be decoded.

    Raises:
        ContextError: for a prompt that is empty, too long or has tokens outside the vocabulary.
        MissingExtraError: for a grammar, without llguidance.
        OptionError: for invalid options.
    """
    for name, kind in (
        ("sampling", Sampling),
        ("speculation", Speculation),
        ("grammar", Grammar),
    ):
        if not isinstance(value := options.get(name), kind | None):
            raise OptionError(f"{name} is {value!r}; it must be a {kind.__name__}.")
    asked = options.get("speculation") or Speculation()
    target, drafter = pair.decoder.target, pair.drafters.get(asked.drafter or "model")
    _refuse_speculation(asked, pair)
    apart, can_draft = pair.apart and asked.drafter != "ngram", drafter is not None
    strategy = resolve(asked, can_draft=can_draft, apart=apart)
    if (highest := max(tokens, default=0)) >= target.vocabulary:
        raise ContextError(
            f"the prompt contains token {highest}, {text.decode([highest])!r}, but the model's "
            f"vocabulary has {target.vocabulary:,} tokens; remove it."
        )
    auto, among = asked.mode == "auto", list[Strategy]()
    if auto:
        among = choices(asked, can_draft=can_draft, apart=apart, exit_heads=pair.exit_heads)
    sampling, grammar = options.get("sampling") or Sampling(), options.get("grammar")
    constraint = None if grammar is None else text.constrain(grammar, target.vocabulary)
    return Answer(
        on=pair.decoder,
        tokens=tokens,
        plan=strategy,
        sampler=Sampler(sampling, target.vocabulary, len(tokens), constraint),
        drafter=drafter if strategy.mode != "ar" else None,
        eos=text.eos,
        limit=_limit(len(tokens), target.context, strategy, options.get("max_new_tokens")),
        choices=among,
        lookup=Lookup(LONGEST_MATCH) if auto and asked.drafter is None else None,
    )


def _refuse_speculation(asked: Speculation, pair: Pair) -> None:
    if asked.drafter == "model" and pair.bundle.manifest.draft is None:
        raise OptionError(
            f"drafter is 'model', but {pair.bundle.folder} has no draft; leave it out."
        )
    context = pair.decoder.target.context
    if (asked.window or 0) >= context:
        raise OptionError(f"window is {asked.window}; it must be below {context}, the context.")


def _limit(prompt: int, context: int, strategy: Strategy, asked: int | None) -> int:
    """Most tokens of the answer and its prompt, which has `prompt` tokens, together."""
    if prompt == 0:
        raise ContextError("the prompt is empty; give it some text.")
    # A padded window writes rows after its last token, which need positions too.
    limit = context - max(0, strategy.width - 1)
    if prompt >= limit:
        kept = f", of which strict reserves {context - limit}" if strategy.width else ""
        raise ContextError(
            f"the prompt has {prompt:,} tokens and the context {context:,}{kept}; "
            "shorten it so that there is room for an answer."
        )
    if asked is None:
        return limit
    require_whole("max_new_tokens", asked)
    if asked < 1:
        raise OptionError(f"max_new_tokens is {asked}; it must be 1 or more.")
    return min(limit, prompt + asked)
