"""Graphs of one operator, for operations that a device must run itself on rows in its memory.

Each is a serialized ONNX model of about a hundred bytes, encoded here because the `onnx` package is
not needed at run time. Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

__all__ = ["attention", "copy", "double", "likeliest", "pick"]

_TYPES = {"float32": 1, "int32": 6, "int64": 7, "float16": 10}
_CONTRIB = b"com.microsoft"
_OPSET, _IR = 21, 10


def attention() -> bytes:
    """`rows` float32 [1, S, size]: causal attention, one head, of `query`, `key` and `value`."""
    cache = ["b", "h", "C", "size"]
    node = _node(
        "GroupQueryAttention",
        ["query", "key", "value", "past_key", "past_value", "last", "total"],
        ["rows", "present_key", "present_value"],
        num_heads=1,
        kv_num_heads=1,
    )
    return _model(
        node + _field(7, _CONTRIB),
        [
            *(_value(name, "float32", ["b", "S", "size"]) for name in ("query", "key", "value")),
            *(_value(name, "float32", cache) for name in ("past_key", "past_value")),
            _value("last", "int32", ["b"]),
            _value("total", "int32", []),
        ],
        [_value("rows", "float32", ["b", "S", "size"])],
    )


def likeliest() -> bytes:
    """`ids` int64 [1, n]: the token with the highest of `logits` float32 [1, n, V]."""
    return _model(
        _node("ArgMax", ["logits"], ["ids"], axis=-1, keepdims=0),
        [_value("logits", "float32", ["b", "n", "V"])],
        [_value("ids", "int64", ["b", "n"])],
    )


def copy(dtype: str) -> bytes:
    """`copied` [1, n, width]: a copy of `rows` [1, n, width]."""
    return _model(
        _node("Identity", ["rows"], ["copied"]),
        [_value("rows", dtype, ["b", "n", "d"])],
        [_value("copied", dtype, ["b", "n", "d"])],
    )


def double(dtype: str) -> bytes:
    """`doubled` [1, heads, 2C, size]: `rows` [1, heads, C, size], then as many unused rows."""
    return _model(
        _node("Concat", ["rows", "rows"], ["doubled"], axis=2),
        [_value("rows", dtype, ["b", "h", "C", "d"])],
        [_value("doubled", dtype, ["b", "h", "2C", "d"])],
    )


def pick(dtype: str) -> bytes:
    """`picked` [1, heads, n, size]: rows of `rows` [1, heads, C, size] at `slots` int64 [n]."""
    return _model(
        _node("Gather", ["rows", "slots"], ["picked"], axis=2),
        [
            _value("rows", dtype, ["b", "h", "C", "d"]),
            _value("slots", "int64", ["n"]),
        ],
        [_value("picked", dtype, ["b", "h", "n", "d"])],
    )


def _model(node: bytes, inputs: list[bytes], outputs: list[bytes]) -> bytes:
    graph = _field(1, node) + _field(2, b"kernel")
    graph += b"".join(_field(11, value) for value in inputs)
    graph += b"".join(_field(12, value) for value in outputs)
    contrib = _field(1, _CONTRIB) + _number(2, 1)
    opsets = _field(8, _number(2, _OPSET)) + _field(8, contrib)
    return _number(1, _IR) + _field(7, graph) + opsets


def _node(operator: str, inputs: list[str], outputs: list[str], **attributes: int) -> bytes:
    node = b"".join(_field(1, name.encode()) for name in inputs)
    node += b"".join(_field(2, name.encode()) for name in outputs)
    node += _field(4, operator.encode())
    for name, number in attributes.items():
        node += _field(5, _field(1, name.encode()) + _number(3, number) + _number(20, 2))
    return node


def _value(name: str, dtype: str, dims: list[str]) -> bytes:
    shape = b"".join(_field(1, _field(2, dim.encode())) for dim in dims)
    tensor = _number(1, _TYPES[dtype]) + _field(2, shape)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    coded = b""
    while value > 0x7F:
        coded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return coded + bytes([value])
