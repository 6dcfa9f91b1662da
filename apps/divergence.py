"""What rounding does to a target: how far bundles are from a reference, on a text.

``python -P -m mirror_edge.apps.divergence REFERENCE BUNDLE... --data FILE`` prints for each bundle,
the reference first: its loss on the text in nats per token, the Kullback-Leibler divergence of its
distribution from the reference's, and how often both have the same most likely token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mirror_edge.apps import program
from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mirror_edge.bundle import Bundle
    from mirror_edge.protocols import Target

__all__ = ["Divergence", "compared", "divergence", "logits"]

_ROWS = 64
"""Rows compared at once, in float64."""
_TOKENIZER = "tokenizer.json"


class Divergence(NamedTuple):
    """Means over the rows of a text."""

    loss: float
    """Nats per token."""
    kl: float
    same: float
    """Share of rows where the most likely token is the reference's."""


def divergence(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles; the first one is the reference.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Text: JSON lines of conversations, or plain *.txt files; repeatable."),
    ],
    rows: Annotated[int, typer.Option(min=64, help="How many tokens of the text to use.")] = 8192,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print how far the targets of bundles are from a reference's, on a text."""
    from rich.console import Console
    from rich.table import Table

    from mirror_edge import bundle as stored
    from mirror_edge.apps.plain_pair import opened_target
    from mirror_edge.apps.progress import stages
    from mirror_edge.export import sample
    from mirror_edge.text import Text

    first, *others = read = [stored.read(bundle) for bundle in bundles]
    for other in others:
        _refuse_other_tokens(first, other)
    drawn = sample.draw(data)
    context = min(each.manifest.target.model.context for each in read)
    sampled = sample.texts_of(drawn, Text.of(first), context, rows)
    texts = [text for document in sampled for text in document if len(text) > 1]
    lines = []
    with opened_target(first) as reference, stages() as show:
        for each in read:
            with nullcontext(reference) if each is first else opened_target(each) as target:
                mean = _mean(reference, target, texts, partial(show, each.folder.name))
            files = each.manifest.files.items()
            size = sum(file.bytes for name, file in files if name.startswith("target/"))
            lines.append((str(each.folder), each.manifest.target.model.precision, size, mean))
    if as_json:
        told = [
            {"bundle": folder, "precision": precision, "bytes": size} | mean._asdict()
            for folder, precision, size, mean in lines
        ]
        typer.echo(json.dumps(told, indent=2))
        return
    table = Table("bundle", "precision", "MB", "loss", "KL", "same token", box=None)
    for folder, precision, size, mean in lines:
        figures = (f"{size / 1e6:.1f}", f"{mean.loss:.4f}", f"{mean.kl:.4f}", f"{mean.same:.3f}")
        table.add_row(folder, precision, *figures)
    Console().print(table)


def _mean(
    reference: Target,
    target: Target,
    texts: Sequence[NDArray[np.int64]],
    on_share: Callable[[float], None],
) -> Divergence:
    """The means over all rows of `texts`."""
    import numpy as np

    found = []
    for done, text in enumerate(texts, 1):
        exact = logits(reference, text)
        rounded = exact if target is reference else logits(target, text)
        found.append(compared(exact, rounded, text))
        on_share(done / len(texts))
    weights = [len(text) - 1 for text in texts]
    return Divergence(*np.average(found, axis=0, weights=weights).tolist())


def logits(target: Target, text: NDArray[np.int64]) -> NDArray[np.float32]:
    """The logits [rows, V] after every token of `text` but the last."""
    target.prefix(text[:-1].tolist(), 0, 0)
    return target.suffix()


def compared(
    reference: NDArray[np.float32], found: NDArray[np.float32], text: NDArray[np.int64]
) -> Divergence:
    """How far the logits `found` are from those of the `reference`, after each token of `text`."""
    import numpy as np

    parts = []
    for at in range(0, len(found), _ROWS):
        rows = slice(at, at + _ROWS)
        p, q = _log_softmax(reference[rows]), _log_softmax(found[rows])
        loss = -q[np.arange(len(q)), text[1:][rows]]
        kl = (np.exp(p) * (p - q)).sum(axis=-1)
        parts.append(np.stack([loss, kl, p.argmax(axis=-1) == q.argmax(axis=-1)]))
    return Divergence(*np.concatenate(parts, axis=1).mean(axis=1).tolist())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    rows = logits.astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    return rows


def _refuse_other_tokens(first: Bundle, other: Bundle) -> None:
    if first.manifest.files[_TOKENIZER] != other.manifest.files[_TOKENIZER]:
        raise OptionError(
            f"{other.folder}: its tokenizer is not that of {first.folder}. "
            "Compare bundles of one model."
        )


if __name__ == "__main__":
    program.run(program.single(divergence))
