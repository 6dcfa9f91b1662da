"""GroupQueryAttention written in plain operators of fixed shapes, for devices that lack it.

The cache is an input, only the new rows are outputs, and keys are transposed already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mirror_edge.export.graph import attribute

__all__ = ["Rows", "Spelling", "unspelled"]

_QUERY, _KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _COS, _SIN = 0, 1, 2, 3, 4, 7, 8
_KNOWN_INPUTS = 11
"""Inputs up to the attention bias."""
_KNOWN = {"num_heads", "kv_num_heads", "scale", "do_rotary", "qk_output"}


@dataclass(frozen=True)
class Rows:
    """The rows that are fed to a layer."""

    fed: int
    kept: int
    """How many, the first ones, whose keys and values join the cache."""
    positions: str
    """Name of their positions, int32 [1, fed]."""
    mask: str
    """Name of what is added to their scores, float32 [1, 1, fed, slots + fed]."""


def unspelled(node: NodeProto) -> str:
    """What in this GroupQueryAttention cannot be written in plain operators; empty if all can."""
    if any(node.input[_KNOWN_INPUTS:]):
        return "attention with a sink, scales or norms of its own"
    for item in node.attribute:
        number = helper.get_attribute_value(item)
        if item.name not in _KNOWN and number not in (0, 0.0, -1, b"", b"NONE"):
            return f"attention with {item.name} = {number}"
    return ""


class Spelling:
    """The nodes written so far, and the constants they read."""

    def __init__(self, kv_heads: int, head_size: int, rotary: int) -> None:
        """For heads of `head_size`, whose first 2·`rotary` entries get rotary embeddings."""
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._made: set[str] = set()
        self._kv_heads, self._size, self._rotary = kv_heads, head_size, rotary

    def attention(self, node: NodeProto, rows: Rows) -> None:
        """Write `node`; its outputs keep their names.

        Those for the cache are the new rows only: keys [1, kv_heads, head_size, kept] and values
        [1, kv_heads, kept, head_size].
        """
        size, kv_heads, fed = self._size, self._kv_heads, rows.fed
        heads, name = _number(node, "num_heads"), f"{node.output[0]}/"
        query, key, value = self._heads(node, heads, fed)
        if _number(node, "do_rotary"):
            table = [self._placed(node.input[at], rows.positions, fed) for at in (_COS, _SIN)]
            query = self._rotated(query, *table)
            key = self._rotated(key, *table)
        scale = _number(node, "scale") or size**-0.5
        query = self._op("Mul", [query, self._constant(np.float32(scale))], name + "scaled")
        # Query heads that share keys are stacked, so that one product serves them all.
        shared = heads // kv_heads
        query = self._reshaped(query, [1, kv_heads, shared * fed, size], name + "query")
        mask = rows.mask
        if shared > 1:
            mask = self._op("Concat", [mask] * shared, f"{mask}/{shared}", axis=2)
        key = self._op("Transpose", [key], name + "key", perm=[0, 1, 3, 2])
        self._first(key, rows, 3, node.output[1])
        self._first(value, rows, 2, node.output[2])
        key = self._op("Concat", [node.input[_PAST_KEY], key], name + "keys", axis=3)
        value = self._op("Concat", [node.input[_PAST_VALUE], value], name + "values", axis=2)
        scores = self._op("MatMul", [query, key], name + "scores")
        seen = self._op("Add", [scores, mask], name + "seen")
        weights = self._op("Softmax", [seen], name + "weights", axis=-1)
        mixed = self._op("MatMul", [weights, value], name + "mixed")
        mixed = self._reshaped(mixed, [1, heads, fed, size], name + "heads")
        mixed = self._op("Transpose", [mixed], name + "rows", perm=[0, 2, 1, 3])
        self._reshaped(mixed, [1, fed, heads * size], node.output[0])

    def _heads(self, node: NodeProto, heads: int, fed: int) -> list[str]:
        """Query, key and value, [1, heads, fed, size] each; they may come packed in one."""
        counts = [heads, self._kv_heads, self._kv_heads]
        names = [node.input[at] for at in (_QUERY, _KEY, _VALUE)]
        if not names[1]:
            widths = [count * self._size for count in counts]
            names = self._split(names[0], widths, 2, [f"{names[0]}/{part}" for part in "qkv"])
        apart = [
            self._reshaped(rows, [1, fed, count, self._size], f"{rows}/apart")
            for rows, count in zip(names, counts, strict=True)
        ]
        return [self._op("Transpose", [x], f"{x}/heads", perm=[0, 2, 1, 3]) for x in apart]

    def _placed(self, table: str, positions: str, fed: int) -> str:
        """The rows of a rotary table at `positions`, [1, 1, fed, rotary]."""
        rows = self._op("Gather", [table, positions], f"{table}/{positions}", axis=0)
        return self._reshaped(rows, [1, 1, fed, self._rotary], f"{rows}/all")

    def _rotated(self, heads: str, cos: str, sin: str) -> str:
        """Apply rotary embeddings: the two halves of the rotated entries are the two axes."""
        rest = self._size - 2 * self._rotary
        widths = [self._rotary, self._rotary, *([rest] if rest else [])]
        one, other, *kept = self._split(
            heads, widths, 3, [f"{heads}/{i}" for i in range(len(widths))]
        )
        products = {
            f"{name}_{by}": self._op("Mul", [half, table], f"{heads}/{name}_{by}")
            for name, half in (("one", one), ("other", other))
            for by, table in (("cos", cos), ("sin", sin))
        }
        rotated = [
            self._op("Sub", [products["one_cos"], products["other_sin"]], f"{one}/rotated"),
            self._op("Add", [products["other_cos"], products["one_sin"]], f"{other}/rotated"),
        ]
        return self._op("Concat", [*rotated, *kept], f"{heads}/rotated", axis=3)

    def _first(self, rows: str, of: Rows, axis: int, output: str) -> None:
        """Output the rows that join the cache."""
        if of.kept == of.fed:
            self._op("Identity", [rows], output)
            return
        bounds = [self._constant(np.array([bound])) for bound in (0, of.kept, axis)]
        self._op("Slice", [rows, *bounds], output)

    def _split(self, rows: str, widths: Sequence[int], axis: int, parts: list[str]) -> list[str]:
        sizes = self._constant(np.array(widths))
        if parts[0] not in self._made:
            self._made.update(parts)
            self.nodes.append(
                helper.make_node("Split", [rows, sizes], parts, f"{rows}/Split", axis=axis)
            )
        return parts

    def _reshaped(self, rows: str, shape: Sequence[int], output: str) -> str:
        return self._op("Reshape", [rows, self._constant(np.array(shape))], output)

    def _op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Write a node, unless it is there already, and return the name of its output."""
        if output not in self._made:
            self._made.add(output)
            self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def _constant(self, values: np.generic | np.ndarray[Any, Any]) -> str:
        """A constant of these values, shared by all nodes that read it."""
        array = np.asarray(values)
        name = f"plain/{array.dtype}/{array.tolist()}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name


def _number(node: NodeProto, name: str) -> Any:
    return attribute(node, name) or 0
