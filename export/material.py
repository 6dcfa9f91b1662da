"""The text that a draft learns from and is measured on, in the tokens of its target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Self

from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import texts
from mirror_edge.export.recipe import Recipe
from mirror_edge.export.source import Source
from mirror_edge.export.tokenizer import write_files
from mirror_edge.text import Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Material"]

_LENGTH = 256
"""Default tokens of a window; no more than half of the target's context."""
_HELD_OUT = 64
"""Fewest held-out tokens to measure on."""


@dataclass(frozen=True)
class Material:
    """Text to train on, and held-out text to measure on."""

    text: texts.Corpus
    held_out: texts.Corpus
    ends: list[int]
    """The target's end-of-sequence tokens."""
    length: int
    """Tokens of a window."""

    @classmethod
    def read(
        cls,
        target: Source,
        tokenizer: Tokenizer,
        data: Sequence[Path],
        held_out: Sequence[Path],
        recipe: Recipe,
    ) -> Self:
        """Read the files; without `held_out`, some documents of `data` are held out.

        Raises:
            DataError: naming the file, and the line, that cannot be used.
            OptionError: windows that are too long for the target.
            ExportError: a target whose configuration lacks a size.
        """
        config = target.text_config
        try:
            vocabulary, context = int(config["vocab_size"]), int(config["max_position_embeddings"])
        except KeyError as error:
            raise ExportError(
                f"{target.folder / 'config.json'}: has no {error}. Such targets are not supported."
            ) from error
        length = recipe.length or min(_LENGTH, context // 2)
        if length > context // 2:
            raise OptionError(
                f"--length {length}: must be at most {context // 2}, half of the target's context."
            )
        with TemporaryDirectory() as folder:
            write_files(target, tokenizer, Path(folder), context)
            text = Text.read(Path(folder))
        ends = target.eos_token_ids
        every = 0 if held_out else texts.held_out_every(data)

        def read(files: Sequence[Path], at_least: int, *, out: bool) -> texts.Corpus:
            return texts.read(
                files,
                text,
                vocabulary=vocabulary,
                end=ends[0] if ends else None,
                every=every,
                held_out=out,
                at_least=at_least,
            )

        ours = read(data, 2 * length + 2, out=False)
        return cls(ours, read(held_out or data, _HELD_OUT, out=True), ends, length)
