"""Chat templates: a model's own Jinja program that writes a conversation as one prompt.

A template comes with the model, so it is untrusted: it runs in Jinja's immutable sandbox, with the
names and filters that Hugging Face transformers provides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NoReturn, TypedDict

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mirror_edge.errors import TemplateError

__all__ = ["MORE_TEMPLATES", "ChatTemplate", "Message", "template_file"]

MORE_TEMPLATES = "additional_chat_templates"
"""The folder with a model's templates other than the default one."""


def template_file(name: str) -> str:
    """The path of the template called `name` in a model's folder."""
    return "chat_template.jinja" if name == "default" else f"{MORE_TEMPLATES}/{name}.jinja"


class Message(TypedDict):
    """One turn of a conversation. Other keys are passed on to the template."""

    role: str
    content: str


class ChatTemplate:
    """A model's chat templates, by name, and the special tokens they may write."""

    def __init__(self, sources: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        """Templates are compiled on first use, so a broken one does not affect raw prompts."""
        self._sources = sources
        self._tokens = tokens

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: object
    ) -> str:
        """The conversation as one text.

        `kwargs` are variables that this model's template knows, such as ``enable_thinking`` or
        ``tools``.

        Raises:
            TemplateError: for messages of the wrong shape, a missing template, or one that fails.
        """
        values = {
            # Templates ask `tools is not none`, and an undefined value is not none.
            "tools": None,
            "documents": None,
            **self._tokens,
            **kwargs,
            "messages": _checked(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        source = self._source(tools=kwargs.get("tools") is not None)
        try:
            return _compiled(source).render(values)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"The chat template is not valid Jinja, line {error.lineno}: {error.message}. "
                "Fix it, or use --raw to send the prompt as it is."
            ) from error
        except Exception as error:  # a template is a program and may fail in any way
            reason = str(error) or type(error).__name__
            raise TemplateError(f"The chat template refused the messages: {reason}") from error

    def _source(self, *, tools: bool) -> str:
        for name in ("tool_use", "default") if tools else ("default",):
            if name in self._sources:
                return self._sources[name]
        raise TemplateError(
            "This model has no chat template, so it cannot answer messages. Give it plain text: "
            "`generate --raw`, or /v1/completions."
        )


def _checked(messages: object) -> list[dict[str, Any]]:
    """Copies of the messages after checking their shape; templates never see the caller's own."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise TemplateError("Messages must be a list of {role, content}.")
    if not messages:
        raise TemplateError("There are no messages; a chat needs at least one.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TemplateError(
                f"Message {index} must be {{role, content}}, not {type(message).__name__}."
            )
        for key in ("role", "content"):
            if key not in message:
                raise TemplateError(f"Message {index} has no {key}.")
            if not isinstance(message[key], str):
                raise TemplateError(
                    f"Message {index}: {key} must be text, not {type(message[key]).__name__}."
                )
    # Keys without a value are omitted: many templates only test whether a key is there.
    return [
        {key: value for key, value in message.items() if value is not None} for message in messages
    ]


class _Generation(Extension):
    """``{% generation %}`` marks text for training; a prompt just contains that text."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _PlainNamespace(Namespace):
    """Jinja's ``namespace`` without underscore names, which could imitate Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `self` can be a keyword
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the underscore name {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        namespace=_PlainNamespace,
    )
    return environment


@cache
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)
