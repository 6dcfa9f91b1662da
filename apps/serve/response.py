"""What a client is told: an answer as the OpenAI API writes it, whole or piece by piece."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirror_edge.errors import (
    BusyError,
    ClosedError,
    ContextError,
    MissingExtraError,
    OptionError,
    TemplateError,
)
from mirror_edge.stats import Stats

if TYPE_CHECKING:
    from mirror_edge import Chunk
    from mirror_edge.apps.serve.request import Asked

__all__ = ["DONE", "Said", "event", "refusal", "status"]

_FIGURES = (
    "time_to_first_token_s",
    "tokens_per_second",
    "tokens_per_step",
    "acceptance_rate",
    "hit_rate",
)

DONE = "data: [DONE]\n\n"
"""The end of every stream."""


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def status(error: Exception) -> int:
    """The HTTP status for an error: the request's fault, or the server's."""
    if isinstance(error, (ContextError, MissingExtraError, OptionError, TemplateError)):
        return 400
    return 503 if isinstance(error, (BusyError, ClosedError)) else 500


def refusal(error: Exception | str) -> dict[str, Any]:
    """An error as clients read it."""
    own = isinstance(error, Exception) and status(error) >= 500
    kind = "server_error" if own else "invalid_request_error"
    code = "context_length_exceeded" if isinstance(error, ContextError) else None
    message = str(error) or type(error).__name__
    if isinstance(error, ClosedError):
        message = "the server is shutting down."
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


@dataclass
class Said:
    """The answer to one request, as far as it has come."""

    asked: Asked
    model: str
    text: str = ""
    finish_reason: str | None = None
    stats: Stats = field(default_factory=Stats)
    """Of the last chunk."""
    _head: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """What every piece of the answer begins with."""
        chat = self.asked.endpoint == "chat"
        self._kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.model,
        }

    def hear(self, chunk: Chunk) -> None:
        """Take one more chunk."""
        self.text += chunk.text
        self.finish_reason, self.stats = chunk.finish_reason, chunk.stats

    def opening(self) -> dict[str, Any]:
        """A chat's first piece, which says whose turn it is."""
        return self._piece({"delta": {"role": "assistant", "content": ""}}, None)

    def piece(self, chunk: Chunk) -> dict[str, Any]:
        """What one chunk adds; the last one with how the answer came about."""
        how = {"mirror_edge": self._figures()} if chunk.finish_reason else {}
        if self.asked.endpoint == "text":
            return self._piece({"text": chunk.text}, chunk.finish_reason) | how
        said = {"content": chunk.text} if chunk.text else {}
        return self._piece({"delta": said}, chunk.finish_reason) | how

    def closing(self) -> dict[str, Any]:
        """How much it was, for those who asked for it."""
        return {**self._head, "object": self._piece_kind, "choices": [], "usage": self._usage()}

    def whole(self) -> dict[str, Any]:
        """All of it at once."""
        said: dict[str, Any] = {"text": self.text}
        if self.asked.endpoint == "chat":
            said = {"message": {"role": "assistant", "content": self.text}}
        choice = {"index": 0, **said, "finish_reason": self.finish_reason, "logprobs": None}
        return {
            **self._head,
            "object": self._kind,
            "choices": [choice],
            "usage": self._usage(),
            "mirror_edge": self._figures(),
        }

    @property
    def _piece_kind(self) -> str:
        return f"{self._kind}.chunk" if self.asked.endpoint == "chat" else self._kind

    def _piece(self, said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **said, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head, "object": self._piece_kind, "choices": [choice]}

    def _usage(self) -> dict[str, Any]:
        prompt, said = self.stats.prompt_tokens, self.stats.generated_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
            "prompt_tokens_details": {"cached_tokens": prompt - self.stats.prefilled_tokens},
        }

    def _figures(self) -> dict[str, Any]:
        """What no other server tells."""
        told = self.stats.as_dict()
        return {"seed": self.asked.seed} | {name: told[name] for name in _FIGURES}
