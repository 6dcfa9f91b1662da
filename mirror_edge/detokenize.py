"""From tokens back to text, piece by piece.

A token need not end where a character ends. A stream emits every character as soon as its last byte
has arrived, and never part of one.
"""

from __future__ import annotations

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tokenizers import Tokenizer

__all__ = ["TextStream", "opener"]


class TextStream(ABC):
    """Incremental detokeniser of one answer; special tokens yield nothing."""

    @abstractmethod
    def push(self, ids: Sequence[int]) -> str:
        """The text that becomes final with these tokens."""

    @abstractmethod
    def finish(self) -> str:
        """The rest of the text; a character that was never completed becomes U+FFFD."""


def opener(tokenizer: Tokenizer) -> Callable[[], TextStream]:
    """Opens `TextStream`s of this tokenizer, which share a cache of tokens."""
    spelling = _Spelling(tokenizer)
    chain = _decoder_chain(tokenizer)
    if [step["type"] for step in chain] == ["ByteLevel"]:
        return partial(_ByteStream, _TokenBytes(spelling, _byte_level), "replace")
    if (fallback := _byte_fallback(chain)) is not None:
        to_bytes, leading = fallback
        return partial(_ByteStream, _TokenBytes(spelling, to_bytes), _EACH_BYTE, leading)
    return partial(_WindowStream, spelling)


# --- tokens that are bytes ------------------------------------------------------------------------

# `tokenizers` emits a U+FFFD per byte with byte fallback, per broken sequence if byte-level.
_EACH_BYTE = "mirror_edge.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


class _ByteStream(TextStream):
    """For tokenizers in which a token stands for the same bytes whatever its neighbours are."""

    def __init__(self, table: _TokenBytes, errors: str, leading: tuple[str, int] = ("", 0)) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self._drop, self._drops = leading

    def push(self, ids: Sequence[int]) -> str:
        return self._stripped(self._decoder.decode(b"".join(self._table[token] for token in ids)))

    def finish(self) -> str:
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        """`text` without what the tokenizer strips from the start of an answer."""
        while text and self._drops:
            if not text.startswith(self._drop):
                self._drops = 0
                break
            text = text[1:]
            self._drops -= 1
        return text


class _TokenBytes(dict[int, bytes]):
    """The bytes of each token, computed on first use; a skipped token has none."""

    def __init__(self, spelling: _Spelling, to_bytes: Callable[[str], bytes]) -> None:
        super().__init__()
        self._spelling = spelling
        self._to_bytes = to_bytes

    def __missing__(self, token: int) -> bytes:
        spelled = self._spelling(token)
        value = self[token] = b"" if spelled is None else self._to_bytes(spelled)
        return value


class _Spelling:
    """How the tokenizer spells a token; None for one that decoding skips."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = frozenset(token.content for token in added if token.special)

    def __call__(self, token: int) -> str | None:
        spelled = self.tokenizer.id_to_token(token)
        return None if spelled in self._special else spelled


def _decoder_chain(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The steps of the tokenizer's decoder, as in tokenizer.json."""
    if tokenizer.decoder is None:
        return []
    spec = json.loads(tokenizer.decoder.__getstate__())
    return list(spec["decoders"]) if spec["type"] == "Sequence" else [spec]


# The alphabet of byte-level tokenizers: a printable Latin-1 character is its own byte, and the
# other 68 bytes are the characters from U+0100 on, in order.
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(b for b in range(0x100) if b not in _PRINTABLE)
}


def _byte_level(spelled: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in spelled)
    except KeyError:  # an added token, spelled literally
        return spelled.encode()


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_fallback(
    chain: list[dict[str, Any]],
) -> tuple[Callable[[str], bytes], tuple[str, int]] | None:
    """For a decoder `Replace*, ByteFallback, Fuse, [Strip]`: tokens' bytes, and what it strips.

    None for any other decoder.
    """
    kinds = [step["type"] for step in chain]
    replaces = [step for step in chain if step["type"] == "Replace"]
    shape = ["Replace"] * len(replaces) + ["ByteFallback", "Fuse"]
    if kinds not in (shape, [*shape, "Strip"]):
        return None
    if any("String" not in step["pattern"] for step in replaces):
        return None
    strip: dict[str, Any] = {"content": " ", "start": 0, "stop": 0}
    if kinds[-1] == "Strip":
        strip = chain[-1]
    if strip["stop"]:  # it would remove text that was already emitted
        return None

    def to_bytes(spelled: str) -> bytes:
        for step in replaces:
            spelled = spelled.replace(step["pattern"]["String"], step["content"])
        byte = _BYTE_TOKEN.fullmatch(spelled)
        return bytes.fromhex(byte[1]) if byte else spelled.encode()

    return to_bytes, (strip["content"], strip["start"])


# --- any other tokenizer --------------------------------------------------------------------------


class _WindowStream(TextStream):
    """For any other decoder: decodes the latest tokens again and holds back a trailing U+FFFD."""

    WINDOW = 16
    """Tokens kept as context for the next ones; a decoder looks no further than its neighbours."""

    def __init__(self, spelling: _Spelling) -> None:
        self._spelling = spelling
        self._ids: list[int] = []
        self._given = 0  # characters of the window's text already emitted

    def push(self, ids: Sequence[int]) -> str:
        # Skipped tokens are no context: a window of nothing else would decode like a new text.
        self._ids += [token for token in ids if self._spelling(token) is not None]
        text = self._decode(self._ids)
        new = text.rstrip("\ufffd")[self._given :]
        self._given += len(new)
        if self._given == len(text):
            self._slide(text)
        return new

    def finish(self) -> str:
        rest = self._decode(self._ids)[self._given :]
        self._ids, self._given = [], 0
        return rest

    def _slide(self, text: str) -> None:
        """Forget old tokens if the others decode to the same text without them."""
        if len(self._ids) < 2 * self.WINDOW:
            return
        tail = self._ids[-self.WINDOW :]
        kept = self._decode(tail)
        if kept and text.endswith(kept):
            self._ids, self._given = tail, len(kept)

    def _decode(self, ids: list[int]) -> str:
        return self._spelling.tokenizer.decode(ids, skip_special_tokens=True)
