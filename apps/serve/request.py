"""What a client asks: the body of a request, read or refused, field by field."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from mirror_edge.errors import OptionError
from mirror_edge.grammar import Grammar
from mirror_edge.policy import Speculation
from mirror_edge.sampling import LEAST_TEMPERATURE, Sampling

if TYPE_CHECKING:
    from mirror_edge import AnswerOptions
    from mirror_edge.result import Prompt

__all__ = ["Asked", "Defaults", "Endpoint", "read"]

Endpoint = Literal["chat", "text"]
"""`/v1/chat/completions` or `/v1/completions`."""

_SAMPLING: Mapping[str, type | tuple[type, ...]] = {
    "temperature": (int, float),
    "top_k": int,
    "top_p": (int, float),
    "min_p": (int, float),
    "repetition_penalty": (int, float),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "seed": int,
}
_LABELS = frozenset(
    {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
"""They are about the request, not about its answer."""
_LIKELIEST = 1e-6
"""A `top_p` that keeps one token, as 0 does elsewhere."""
_STOPS, _STOP_LETTERS = 64, 4096
"""Every token's text is searched for all of them, while other requests wait."""
_ONLY: Mapping[str, Sequence[object]] = {
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (False, True),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Known fields that are not supported, and the values of theirs that change nothing."""


@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing."""

    sampling: Mapping[str, Any]
    """Fields of `Sampling`; a seed of None is drawn anew for every answer."""
    speculation: Speculation = field(default_factory=Speculation)
    template: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Asked:
    """A request as the library takes it."""

    endpoint: Endpoint
    model: str | None
    prompt: Prompt
    options: AnswerOptions
    seed: int
    stream: bool
    """Piece by piece, as server-sent events."""
    with_usage: bool
    """Whether the stream ends with the number of tokens."""


def read(endpoint: Endpoint, body: bytes, defaults: Defaults) -> Asked:
    """The body of a request to `endpoint`; null is the same as nothing.

    Raises:
        OptionError: naming the field that cannot be honoured; none is ignored.
    """
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"the body is not JSON ({error}).") from None
    if not isinstance(sent, dict):
        raise OptionError("the body must be a JSON object.")
    fields = {name: value for name, value in sent.items() if value is not None}
    model = _typed(fields, "model", str, "a string")
    prompt = _prompt(endpoint, fields)
    for name in _LABELS & fields.keys():
        del fields[name]
    for name in _ONLY.keys() & fields.keys():
        value, harmless = fields.pop(name), _ONLY[name]
        flags = isinstance(harmless[0], bool)
        if value not in harmless or isinstance(value, bool) is not flags:  # Since True == 1.
            raise OptionError(f"{name} is {_shown(value)}, which is not supported; leave it out.")
    sampling = dict(defaults.sampling)
    for name in _SAMPLING.keys() & fields.keys():
        called = "a whole number" if _SAMPLING[name] is int else "a number"
        sampling[name] = _typed(fields, name, _SAMPLING[name], called)
    # As small as that it is greedy, and clients that mean so send it.
    if 0 < sampling.get("temperature", 1) < LEAST_TEMPERATURE:
        sampling["temperature"] = 0
    if sampling.get("top_p") == 0:
        sampling["top_p"] = _LIKELIEST
    if sampling.get("seed") is None:
        sampling["seed"] = secrets.randbelow(2**31)
    template = dict(defaults.template)
    if endpoint == "chat":
        template |= _typed(fields, "chat_template_kwargs", dict, "an object") or {}
    stream = bool(_typed(fields, "stream", bool, "true or false"))
    options: AnswerOptions = {
        "max_new_tokens": _longest(fields) or defaults.max_new_tokens,
        "sampling": Sampling(**sampling),
        "speculation": defaults.speculation,
        "stop": _stops(fields),
    }
    if endpoint == "chat":
        options["template"] = template
    if (grammar := _grammar(fields)) is not None:
        options["grammar"] = grammar
    with_usage = _with_usage(fields, stream)
    if fields:
        raise OptionError(
            f"unknown fields: {', '.join(map(_shown, sorted(fields)))}; leave them out."
        )
    return Asked(endpoint, model, prompt, options, sampling["seed"], stream, with_usage)


def _typed(fields: dict[str, Any], name: str, kind: type | tuple[type, ...], called: str) -> Any:
    """Take a field out; None if it is not there."""
    value = fields.pop(name, None)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # Some clients know no other numbers.
    flag = isinstance(value, bool) and kind is not bool
    if value is not None and (flag or not isinstance(value, kind)):
        raise OptionError(f"{name} is {_shown(value)}; it must be {called}.")
    return value


def _shown(value: object) -> str:
    """A value as it was sent, or the beginning of it."""
    try:
        return shorten(json.dumps(value), 200, placeholder=" …")
    except RecursionError:
        return "nested too deeply"


def _prompt(endpoint: Endpoint, fields: dict[str, Any]) -> Prompt:
    name = "messages" if endpoint == "chat" else "prompt"
    if name not in fields:
        raise OptionError(f"{name} is missing; there is nothing to answer.")
    if endpoint == "text":
        prompts = _typed(fields, "prompt", (str, list), "one string")
        text = prompts[0] if isinstance(prompts, list) and len(prompts) == 1 else prompts
        if not isinstance(text, str) or not text:
            raise OptionError(f"prompt is {_shown(prompts)}; it must be one non-empty string.")
        return text
    messages = _typed(fields, "messages", list, "a list of messages")
    return [_flat(message) if isinstance(message, dict) else message for message in messages]


def _flat(message: dict[str, Any]) -> Any:
    """A message whose content is one string, where it came in parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise OptionError(
                "content has a part that is not text, which is all that is supported."
            )
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _longest(fields: dict[str, Any]) -> int | None:
    """`max_tokens` has a newer name, which may stand beside it."""
    asked = {
        _typed(fields, n, int, "a whole number") for n in ("max_tokens", "max_completion_tokens")
    }
    asked.discard(None)
    if len(asked) > 1:
        raise OptionError("max_tokens and max_completion_tokens differ; send one of them.")
    for count in asked:
        if count < 1:
            raise OptionError(f"max_tokens is {count}; it must be 1 or more.")
    return asked.pop() if asked else None


def _stops(fields: dict[str, Any]) -> list[str]:
    stop = _typed(fields, "stop", (str, list), "a string or a list of strings") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(one, str) for one in stops):
        raise OptionError(f"stop is {_shown(stop)}; it must be a string or a list of strings.")
    if len(stops) > _STOPS or sum(map(len, stops)) > _STOP_LETTERS:
        raise OptionError(
            f"stop has {len(stops):,} strings with {sum(map(len, stops)):,} characters; the limit "
            f"is {_STOPS} with {_STOP_LETTERS:,}."
        )
    return list(stops)


def _grammar(fields: dict[str, Any]) -> Grammar | None:
    """The form that `response_format` asks for."""
    asked = _typed(fields, "response_format", dict, "an object")
    match asked:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return Grammar.json()
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            return Grammar.json(schema)
    raise OptionError(
        f"response_format is {_shown(asked)}; its type must be text, json_object, or json_schema "
        "with a schema under json_schema.schema."
    )


def _with_usage(fields: dict[str, Any], stream: bool) -> bool:
    asked = _typed(fields, "stream_options", dict, "an object")
    if asked is None:
        return False
    if not stream:
        raise OptionError('stream_options requires "stream": true.')
    if unknown := asked.keys() - {"include_usage"}:
        raise OptionError(
            f"stream_options has unknown fields: {', '.join(map(_shown, sorted(unknown)))}."
        )
    return bool(_typed(dict(asked), "include_usage", bool, "true or false"))
