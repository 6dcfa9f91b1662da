"""Conversations on disk, and the token stream a language model trains on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirror_edge.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

Conversation = tuple[str, ...]
"""Turns in order: user, assistant, user, …; an empty first turn means plain text."""

BEGIN, USER, ASSISTANT, END = "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (BEGIN, USER, ASSISTANT, END)

CHAT_TEMPLATE = (
    "{{ '" + BEGIN + "' }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant turns are known to this model') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '" + END + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def read(path: Path) -> Iterator[Conversation]:
    """Yield the conversations of a JSON-lines file.

    A line is ``{"m": [user, assistant, …]}``, ``{"messages": [{"role", "content"}, …]}``
    or ``{"text": …}``. Anything else is refused by file and line.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _parse(line, f"{path}:{number}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason})") from error


def _parse(line: str, where: str) -> Conversation:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON ({error.msg})") from error
    turns: object = None
    if isinstance(row, dict):
        if "text" in row:
            turns = ["", row["text"]]
        elif "messages" in row and isinstance(row["messages"], list):
            turns = [m.get("content") if isinstance(m, dict) else None for m in row["messages"]]
        else:
            turns = row.get("m")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise DataError(f'{where}: needs "m", "messages" or "text" with the turns as strings')
    return tuple(turns)


def render(turns: Conversation) -> str:
    """The text of one conversation, as `CHAT_TEMPLATE` would write it."""
    if turns[0] == "":
        return BEGIN + "".join(turns[1:]) + END
    speakers = (USER, ASSISTANT)
    return BEGIN + "".join(f"{speakers[i % 2]}{turn}{END}" for i, turn in enumerate(turns))


def token_stream(tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> NDArray[np.uint16]:
    """All conversations as one array of token ids, in a shuffled but repeatable order."""
    order = np.random.default_rng(0).permutation(len(conversations))
    pieces: list[NDArray[np.uint16]] = []
    for start in range(0, len(order), 4096):
        texts = [render(conversations[i]) for i in order[start : start + 4096]]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        pieces.extend(np.asarray(e.ids, dtype=np.uint16) for e in encoded)
    return np.concatenate(pieces)
