"""Text to train on: files of conversations and of plain text, as tokens of one model.

A JSON line is ``{"messages": [{"role", "content"}, …]}``, ``{"m": [user, assistant, …]}`` (an
empty first turn means plain text) or ``{"text": …}``. A file that ends in .txt or .md is plain
text. Conversations are rendered by the model's own chat template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.errors import DataError, TemplateError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.text import Message, Text

    Tokens = NDArray[np.unsignedinteger[Any]]

__all__ = ["Corpus", "Document", "documents", "held_out_every", "read", "rendered"]

_PLAIN = {".txt", ".md"}
_BLOCK = 4096
"""Characters per document of plain text, up to the end of a line."""
_BATCH = 1024
"""Documents tokenized at once."""
_PROMPTS = 8192
"""The most prompts, drawn evenly from the documents."""
_OPENING = 32
"""Tokens of plain text that serve as a prompt."""


@dataclass(frozen=True)
class Document:
    """One conversation or one piece of plain text."""

    where: str
    """The file and line where it starts."""
    content: str | list[Message]


@dataclass(frozen=True)
class Corpus:
    """Documents as tokens."""

    tokens: Tokens
    """All documents in one row, uint16 where the vocabulary allows, else uint32."""
    prompts: list[Tokens]
    """What comes before an answer in some of the documents, shortest first."""
    documents: int


def documents(files: Sequence[Path]) -> Iterator[Document]:
    """The documents of `files`, in order.

    Raises:
        DataError: naming the file and the line that cannot be used.
    """
    for file in files:
        empty = True
        for document in _plain(file) if file.suffix.lower() in _PLAIN else _json_lines(file):
            empty = False
            yield document
        if empty:
            raise DataError(f"{file}: is empty. Give a file with text in it.")


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file, each with its location."""
    if file.is_dir():
        raise DataError(f"{file}: is a folder. Give the files in it.")
    try:
        with file.open("rb") as raw:
            for number, line in enumerate(raw, start=1):
                where = f"{file}:{number}"
                try:
                    yield where, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{where}: is not UTF-8 text ({error.reason} at byte {error.start + 1} of "
                        "the line). Convert the file to UTF-8."
                    ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error


def _plain(file: Path) -> Iterator[Document]:
    block: list[str] = []
    begin, size = "", 0
    for where, line in _lines(file):
        if not block:
            begin = where
        block.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield Document(begin, "".join(block))
            block, size = [], 0
    if "".join(block).strip():
        yield Document(begin, "".join(block))


def _json_lines(file: Path) -> Iterator[Document]:
    for where, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            reason = "nested too deeply" if deep else getattr(error, "msg", str(error))
            raise DataError(
                f"{where}: is not JSON ({reason}). Give JSON lines, or plain text in a file "
                "named *.txt."
            ) from error
        document = Document(where, _content(row, where))
        _refuse_lone_surrogates(line, row, where)
        yield document


def _content(row: Any, where: str) -> str | list[Message]:
    if isinstance(row, dict):
        if isinstance(row.get("text"), str) and row["text"].strip():
            return str(row["text"])
        messages, turns = row.get("messages"), row.get("m")
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return messages
        if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
            if turns[0] == "":
                return "".join(turns)
            speakers = ("user", "assistant")
            return [{"role": speakers[i % 2], "content": turn} for i, turn in enumerate(turns)]
    raise DataError(
        f'{where}: needs "messages" (a list of objects with a role and a content), "m" (a list '
        'of strings) or "text" (a string), which must not be empty.'
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _refuse_lone_surrogates(line: str, row: Any, where: str) -> None:
    if "\\ud" not in line.lower():
        return
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: contains an unpaired surrogate, so it is not valid Unicode. Remove the line."
        ) from error


def held_out_every(files: Sequence[Path]) -> int:
    """One in how many documents to hold out: about 256 in total, but at most one in ten.

    Raises:
        DataError: as `documents`; or for a single document.
    """
    count = sum(1 for _ in documents(files))
    if count < 2:
        raise DataError(
            f"{files[0]}: is only one document, so none can be held out. Give --held-out FILE."
        )
    return min(count, max(10, min(count // 256, 100)))


def read(
    files: Sequence[Path],
    text: Text,
    *,
    vocabulary: int,
    end: int | None,
    every: int = 0,
    held_out: bool = False,
    at_least: int = 1,
) -> Corpus:
    """The documents of `files` in the tokens of `text`, plain text followed by the token `end`.

    With `every` n, each n-th document is omitted; with `held_out`, only these are read.

    Raises:
        DataError: naming the file and the line that cannot be used, or the file that is shorter
            than `at_least` tokens.
    """
    kind = np.uint16 if vocabulary <= 2**16 else np.uint32
    found = (
        document
        for number, document in enumerate(documents(files), start=1)
        if not every or (number % every == 0) == held_out
    )
    pieces: list[Tokens] = []
    chosen: list[tuple[Document, Tokens]] = []
    draw = np.random.default_rng(0)
    count = 0
    while batch := list(islice(found, _BATCH)):
        for document, tokens in zip(batch, _encode(batch, text, end, kind), strict=True):
            pieces.append(tokens)
            count += 1
            if len(chosen) < _PROMPTS:
                chosen.append((document, tokens))
            elif (place := int(draw.integers(count))) < _PROMPTS:
                chosen[place] = (document, tokens)
    joined = np.concatenate([pieces[i] for i in draw.permutation(count)] or [np.empty(0, kind)])
    if len(joined) < at_least:
        raise DataError(
            f"{files[0]}: is too short: {len(joined):,} tokens, and at least {at_least:,} are "
            "needed. Give more text."
        )
    if int(joined.max()) >= vocabulary:
        raise DataError(
            f"{files[0]}: has a token {int(joined.max())} that the model does not know "
            f"({vocabulary:,} tokens). Copy the model's tokenizer files again."
        )
    prompts = [_prompt(document, tokens, text) for document, tokens in chosen]
    return Corpus(joined, sorted(filter(len, prompts), key=len), count)


def _encode(batch: list[Document], text: Text, end: int | None, kind: type) -> list[Tokens]:
    plain = [document for document in batch if isinstance(document.content, str)]
    chats = [document for document in batch if not isinstance(document.content, str)]
    cut = text.tokenizer.encode_batch
    ending = [] if end is None else [end]
    found: dict[int, Tokens] = {
        id(document): np.array(encoded.ids + ending, kind)
        for document, encoded in zip(
            plain, cut([str(document.content) for document in plain]), strict=True
        )
    }
    found |= {
        id(document): np.array(encoded.ids, kind)
        for document, encoded in zip(
            chats,
            cut([rendered(document, text) for document in chats], add_special_tokens=False),
            strict=True,
        )
    }
    return [found[id(document)] for document in batch]


def rendered(document: Document, text: Text, turns: int | None = None) -> str:
    """The conversation by the chat template; with `turns`, up to the start of an answer.

    Raises:
        DataError: naming the document that the template rejects.
    """
    try:
        return text.render_chat(
            document.content[:turns],  # type: ignore[arg-type]
            add_generation_prompt=turns is not None,
        )
    except TemplateError as error:
        reason = str(error).partition(". ")[0].rstrip(".")
        raise DataError(
            f"{document.where}: cannot be rendered by the target's chat template "
            f"({reason}). Remove the line, or give it as plain text."
        ) from error


def _prompt(document: Document, tokens: Tokens, text: Text) -> Tokens:
    """What comes before an answer; for plain text, its beginning."""
    if isinstance(document.content, str):
        return tokens[: min(_OPENING, len(tokens) // 2)]
    answers = [i for i, turn in enumerate(document.content) if turn["role"] == "assistant"]
    if not answers or not answers[0]:
        return tokens[:0]
    # Chosen by length rather than at random, so that it is reproducible.
    turn = answers[len(tokens) % len(answers)]
    prompt = text.encode(rendered(document, text, turn), add_special_tokens=False)
    return np.array(prompt, tokens.dtype)
