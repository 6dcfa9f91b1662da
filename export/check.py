"""Checks of the exported graphs: run as a decoder runs them, compared with what is expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.bundle import ModelSpec
from mirror_edge.errors import ExportError
from mirror_edge.export.reference import numpy_type, session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mirror_edge.export.exit_head import Correction

    Rows = NDArray[np.float32]
    Ids = NDArray[np.int64]

__all__ = [
    "SHORTEST",
    "TREE_NODES",
    "CachedGraph",
    "Tree",
    "check_draft",
    "check_exit",
    "check_target",
    "compare",
    "source_limit",
    "streamed",
    "tree_after",
]

# Quantised kernels round differently at different widths.
_CUT = {"fp32": 1e-3, "fp16": 5e-2, "int8": 0.15, "int4-mixed": 0.15, "int4": 0.15}
# Unrelated logits deviate by 1.41. Rounding is not an error of the export, so it is allowed.
_SOURCE = {"fp32": 1e-3, "fp16": 5e-2, "int8": 0.5, "int4-mixed": 1.2, "int4": 1.2}
SHORTEST = 16
"""Fewest tokens of a text to check on."""
TREE_NODES = 6
_TAIL = 10
"""Tokens at the end of the text that are fed as a window and in single steps."""
_UNNAMED = -1e8
_REFUSED = -1e4
"""Added to an attention score to mask it; within float16's range."""


def _cut_limit(spec: ModelSpec) -> float:
    """How far a cut graph may deviate from the full one; see `compare`."""
    return _CUT[spec.precision]


def source_limit(spec: ModelSpec) -> float:
    """How far the full graph may deviate from the source; see `compare`."""
    return _SOURCE[spec.precision]


def compare(graph: str, found: Rows, expected: Rows, limit: float) -> float:
    """The worst row's root mean square error, in standard deviations of the expected logits.

    Tokens that an exit head cannot name must have the logit for these, and are not counted.

    Raises:
        ExportError: naming `graph`, when it is above `limit`.
    """
    named = (expected > _UNNAMED).any(axis=0)
    if (found[:, ~named] > _UNNAMED).any():
        raise ExportError(f"{graph}: names tokens that the exit head cannot name.")
    found, expected = found[:, named], expected[:, named]
    with np.errstate(all="ignore"):
        error = np.sqrt(np.mean((found - expected) ** 2, axis=-1)).max()
    deviation = float(error / max(float(expected.std()), 1e-9))
    if not deviation <= limit:  # a NaN fails too
        worst = float(np.abs(found - expected).max())
        raise ExportError(
            f"{graph}: its logits are off by {worst:.3g} from the source model's, a root mean "
            f"square error of {deviation:.3g} standard deviations; {limit:.3g} are allowed. This "
            "architecture or configuration cannot be exported correctly: no bundle was written."
        )
    return deviation


class CachedGraph:
    """One graph with its KV cache."""

    def __init__(self, path: Path, spec: ModelSpec, capacity: int) -> None:
        """Load the graph at `path`, with room for `capacity` tokens."""
        self._name, self._session = path.name, session(path)
        self._grown = spec.cache == "concat"
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        shape = (1, spec.kv_heads, capacity, spec.head_size)
        self._cache: dict[str, NDArray[Any]] = {
            entry.name: np.zeros(shape, numpy_type(spec))
            for entry in self._session.get_inputs()
            if entry.name.startswith("past_key_values.")
        }

    def run(self, start: int, width: int, **feeds: NDArray[Any]) -> NDArray[Any]:
        """Feed `width` rows after the `start` rows that are cached; returns the first output."""
        total = start + width
        if self._grown:
            feeds["attention_mask"] = np.ones((1, total), np.int64)
            past = {name: array[:, :, :start] for name, array in self._cache.items()}
        else:
            feeds["seqlens_k"] = np.array([total - 1], np.int32)
            feeds["total_sequence_length"] = np.array(total, np.int32)
            past = self._cache
        try:
            found = self._session.run(None, {**feeds, **past})
        except Exception as error:
            raise ExportError(
                f"{self._name}: fails with {start} rows cached and {width} new ones, so "
                f"this architecture is not supported: {error}"
            ) from error
        outputs = dict(zip(self._outputs, found, strict=True))
        self._cache = {
            name: outputs[name.replace("past_key_values", "present")] for name in self._cache
        }
        first: NDArray[Any] = outputs[self._outputs[0]]
        return first


def check_target(folder: Path, spec: ModelSpec, ids: Ids, expected: Rows) -> float:
    """Check a prompt in chunks, a window, rejected tokens and single steps; the deviation."""
    prefix = CachedGraph(folder / "prefix.onnx", spec, len(ids))
    suffix = CachedGraph(folder / "suffix.onnx", spec, len(ids))

    def forward(start: int, tokens: Ids) -> Rows:
        hidden = prefix.run(start, len(tokens), input_ids=tokens[None])
        rows = np.arange(len(tokens))
        logits: Rows = suffix.run(start, len(tokens), hidden=hidden, rows=rows)[0]
        return logits

    prompt, half = len(ids) - _TAIL, len(ids) - _TAIL // 2
    found = [
        forward(a, ids[a:b]) for a, b in ((0, prompt // 2), (prompt // 2, prompt), (prompt, half))
    ]
    forward(half, ids[: _TAIL - _TAIL // 2 - 1])
    found += [forward(at, ids[at : at + 1]) for at in range(half, len(ids))]
    return compare(
        "target/prefix.onnx with target/suffix.onnx",
        np.concatenate(found),
        expected,
        _cut_limit(spec),
    )


@dataclass(frozen=True)
class Tree:
    """A few branching guesses after a text; a node's parent is -1 for the text itself."""

    tokens: Ids
    parents: tuple[int, ...]

    def path(self, node: int) -> list[int]:
        """The nodes from the text to `node`."""
        parent = self.parents[node]
        return [*([] if parent < 0 else self.path(parent)), node]

    def texts(self, ids: Ids) -> list[Ids]:
        """`ids` followed by each node's path."""
        return [
            np.concatenate([ids, self.tokens[self.path(node)]]) for node in range(len(self.parents))
        ]


def tree_after(ids: Ids) -> Tree:
    """Six nodes: two branches from the text, one of which branches again."""
    return Tree(ids[1:7], (-1, -1, 0, 1, 2, 2))


def streamed(ids: Ids, tree: Tree) -> list[Ids]:
    """The texts whose last rows have streams in `check_draft`."""
    first, prompt = _chunks(ids)
    return [ids[: first + 1], ids[:prompt], *tree.texts(ids), ids]


def check_draft(
    folder: Path,
    spec: ModelSpec,
    ids: Ids,
    tree: Tree,
    expected: list[Rows],
    ahead: list[Rows] | None = None,
) -> float:
    """Check a prompt in chunks, a tree, then the text in the tree's place; the deviation.

    `expected` are the logits of `ids`, then of each of the tree's texts; `ahead` those of the
    streams of each text in `streamed`, for a draft with streams.
    """
    size, count = len(tree.parents), 0 if ahead is None else len(ahead[0])
    draft = CachedGraph(folder / "draft.onnx", spec, len(ids) + size * (1 + count))
    found: list[Rows] = []
    found_ahead: list[Rows] = []

    def forward(start: int, tokens: Ids, positions: Ids, bias: Rows, *with_streams: int) -> None:
        rows, extra = len(tokens), len(with_streams) * count
        feeds: dict[str, NDArray[Any]] = {"attention_bias": bias}
        if count:
            total = start + rows + extra
            feeds["streamed"] = np.array(with_streams, np.int64)
            feeds["streams"] = np.arange(count)
            feeds["stream_attention_bias"] = _stream_bias(bias, with_streams, count)
            feeds["stream_seqlens_k"] = np.array([total - 1], np.int32)
            feeds["stream_total_sequence_length"] = np.array(total, np.int32)
        for name in feeds.keys() & {"attention_bias", "stream_attention_bias"}:
            feeds[name] = feeds[name][None, None].astype(numpy_type(spec))
        logits = draft.run(
            start,
            rows,
            input_ids=tokens[None],
            position_ids=positions[None],
            rows=np.arange(rows + extra),
            **feeds,
        )[0]
        found.append(logits[:rows])
        found_ahead.append(logits[rows:])

    def text(start: int, stop: int, *with_streams: int) -> None:
        bias = np.triu(np.full((stop - start, stop), _REFUSED, np.float32), start + 1)
        forward(start, ids[start:stop], np.arange(start, stop), bias, *with_streams)

    first, prompt = _chunks(ids)
    text(0, first)
    text(first, prompt, 0, prompt - first - 1)
    text(prompt, len(ids))
    bias = np.full((size, len(ids) + size), _REFUSED, np.float32)
    bias[:, : len(ids)] = 0
    for node in range(size):
        bias[node, [len(ids) + other for other in tree.path(node)]] = 0
    depths = np.array([len(tree.path(node)) - 1 for node in range(size)])
    forward(len(ids), tree.tokens, len(ids) + depths, bias, *range(size))
    text(len(ids) - 2, len(ids) - 1)
    text(len(ids) - 1, len(ids), 0)
    wanted = [expected[0], *(rows[-1:] for rows in expected[1:]), expected[0][-2:]]
    return compare(
        "draft/draft.onnx",
        np.concatenate([*found, *found_ahead]),
        np.concatenate([*wanted, *(ahead or [])]),
        _cut_limit(spec),
    )


def _chunks(ids: Ids) -> tuple[int, int]:
    """Where the first two chunks of the prompt end."""
    prompt = len(ids) - _TAIL
    return prompt // 2, prompt


def _stream_bias(bias: Rows, of: Sequence[int], count: int) -> Rows:
    """`bias` with the rows and slots of the `count` streams of each main row in `of`."""
    (rows, slots), extra = bias.shape, len(of) * count
    widened = np.full((rows + extra, slots + extra), _REFUSED, np.float32)
    widened[:rows, :slots] = bias
    for at, row in enumerate(of):
        for k in range(count):
            own = at * count + k
            widened[rows + own, :slots] = bias[row]
            widened[rows + own, slots + at * count : slots + own + 1] = 0
    return widened


def check_exit(folder: Path, spec: ModelSpec, size: int, correction: Correction | None) -> float:
    """Compare the exit head's candidates with norm, correction and full head; the deviation."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((1, 3, spec.hidden)).astype(numpy_type(spec))
    feeds = {"hidden": hidden, "top": np.array([min(4, size)])}
    ids, found = session(folder / "exit.onnx").run(["exit_ids", "exit_logprobs"], feeds)
    (rows,) = session(folder / "norm.onnx").run(["normed"], {"hidden": hidden})
    if correction is not None:
        rows = correction.apply(rows.astype(np.float32)).astype(rows.dtype)
    (logits,) = session(folder / "head.onnx").run(["logits"], {"normed": rows})
    expected = np.take_along_axis(logits, ids, axis=-1)
    # Log-probabilities are logits minus a constant of the row.
    found = found + (expected - found).mean(axis=-1, keepdims=True)
    limit = max(_cut_limit(spec), 1e-2)
    return compare("target/exit.onnx", found[0], expected[0], limit)
