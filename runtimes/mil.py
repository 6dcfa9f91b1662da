"""An evaluator of Core ML programs: runs a saved ``.mlpackage`` with numpy, on any system.

It reads the package's specification and weight file, as Core ML does, and runs one function,
including its states. Operators compute in float32 and round to the declared type of their output.
It is slow; its purpose is to check what an export wrote and to test the code that runs it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.coreml.library import coremltools

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["Evaluator"]

_BLOB = struct.Struct("<IIQQ")
"""A tensor's header in the weight file: magic number, type, size in bytes, offset."""
_MAGIC = 0xDEADBEEF
_CACHED_BYTES = 1 << 28
"""Constants are cached if the weight file is smaller than this."""
_TYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "STRING": np.str_,
    **{"FLOAT16": np.float16, "FLOAT32": np.float32},
    **{"INT4": np.int8, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32},
    **{"UINT4": np.uint8, "UINT8": np.uint8, "UINT16": np.uint16},
}


class Evaluator:
    """A `Program`: one function of a package."""

    def __init__(self, package: Path, function: str) -> None:
        """Read `function` of `package`.

        Raises:
            DeviceError: if the package lacks the function, or it has an unsupported operator.
            MissingExtraError: if coremltools, which parses the file format, is not installed.
        """
        tools = coremltools()
        self._type_name = tools.proto.MIL_pb2.DataType.Name
        self._array_name = tools.proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name
        self._name = f"{package}: {function}"
        spec = tools.models.utils.load_spec(str(package))
        if function not in spec.mlProgram.functions:
            raise DeviceError(f"{package}: has no function {function!r}. Export again.")
        described = {entry.name: entry for entry in spec.description.functions}
        self._description = described.get(function, spec.description)
        program = spec.mlProgram.functions[function]
        block = program.block_specializations[program.opset]
        self._outputs = list(block.outputs)
        self._operations, self._constants = [], {}
        for operation in block.operations:
            kind = operation.type
            if kind not in _OPERATORS and kind not in {"const", "read_state", "write_state"}:
                at = operation.outputs[0].name
                raise DeviceError(f"{self._name}: the evaluator has no operator {kind} (at {at}).")
            if kind == "const" or kind.startswith("constexpr_"):
                self._constants[operation.outputs[0].name] = operation
            else:
                self._operations.append(operation)
        weights = package / "Data/com.apple.CoreML/weights/weight.bin"
        self._weights: mmap.mmap | bytes = b""
        if weights.is_file():
            with weights.open("rb") as stream:
                self._weights = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        # Large weights are unpacked on every run, so that they are never all in memory.
        self._keep = len(self._weights) < _CACHED_BYTES
        self._kept: dict[str, Any] = {}

    def make_state(self) -> dict[str, Array]:
        """Zeros for every state of the function, by name."""
        arrays = {entry.name: entry.type.stateType.arrayType for entry in self._description.state}
        return {name: np.zeros(tuple(array.shape), np.float32) for name, array in arrays.items()}

    def predict(
        self, inputs: Mapping[str, Array], state: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once; `state` is updated in place.

        Raises:
            DeviceError: if the inputs or their shapes do not fit, or `state` is missing.
        """
        self._check(inputs)
        values: dict[str, Any] = {name: _wide(array) for name, array in inputs.items()}
        states = {} if state is None else state
        with np.errstate(all="ignore"):  # float16 overflows as it does on a device.
            for operation in self._operations:
                self._step(operation, values, states)
        outputs = {entry.name: entry.type.multiArrayType for entry in self._description.output}
        types = {name: self._array_name(array.dataType).lower() for name, array in outputs.items()}
        return {name: values[name].astype(types[name]) for name in self._outputs}

    def _step(self, operation: Any, values: dict[str, Any], states: dict[str, Array]) -> None:
        if operation.type == "read_state":
            name = operation.inputs["input"].arguments[0].name
            if name not in states:
                raise DeviceError(f"{self._name}: needs the state {name}, but none was given.")
            values[operation.outputs[0].name] = states[name]
            return
        if operation.type == "write_state":
            name, data = (operation.inputs[key].arguments[0].name for key in ("input", "data"))
            states[name] = values[data]
            return
        found = _OPERATORS[operation.type](**self._arguments(operation, values))
        results = found if isinstance(found, tuple) else (found,)
        for output, result in zip(operation.outputs, results, strict=True):
            kind = self._type_name(output.type.tensorType.dataType)
            if kind != "FLOAT16":
                values[output.name] = np.asarray(result).astype(_TYPES[kind], copy=False)
            elif operation.type in _MOVES:
                values[output.name] = result
            else:  # float16 values are held in float32 throughout.
                values[output.name] = result.astype(np.float16).astype(np.float32)

    def _arguments(self, operation: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        def one(binding: Any) -> Any:
            if binding.WhichOneof("binding") == "value":
                return self._value(binding.value)
            if binding.name in values:
                return values[binding.name]
            return self._constant(binding.name)

        arguments = {}
        for key, argument in operation.inputs.items():
            found = [one(binding) for binding in argument.arguments]
            arguments[key] = found if key == "values" else found[0]
        return arguments

    def _constant(self, name: str) -> Any:
        if name in self._kept:
            return self._kept[name]
        operation = self._constants[name]
        if operation.type == "const":
            found = self._value(operation.attributes["val"])
        else:
            found = _OPERATORS[operation.type](**self._arguments(operation, {}))
        if self._keep:
            self._kept[name] = found
        return found

    def _value(self, value: Any) -> Any:
        """A constant from the specification or the weight file."""
        kind = self._type_name(value.type.tensorType.dataType)
        shape = tuple(size.constant.size for size in value.type.tensorType.dimensions)
        if value.WhichOneof("value") == "immediateValue":
            content = value.immediateValue.tensor
            field = content.WhichOneof("value")
            listed = getattr(content, field).values
            if field == "bytes":
                listed = np.frombuffer(listed, _TYPES[kind])
            found = _wide(np.array(listed, _TYPES[kind]).reshape(shape))
            return found if shape else found.item()
        at = value.blobFileValue.offset
        magic, _, size, start = _BLOB.unpack_from(self._weights, at)
        if magic != _MAGIC:
            raise DeviceError(f"{self._name}: weight.bin has no tensor at {at}. Export again.")
        raw = np.frombuffer(self._weights, np.uint8, size, start)
        if kind in {"INT4", "UINT4"}:
            raw = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))]
            if kind == "INT4":
                raw = (raw ^ 8).astype(np.uint8) - np.uint8(8)
        return _wide(raw.view(_TYPES[kind]).reshape(shape))

    def _check(self, inputs: Mapping[str, Array]) -> None:
        wanted = {entry.name: entry.type.multiArrayType for entry in self._description.input}
        if wanted.keys() != inputs.keys():
            raise DeviceError(
                f"{self._name}: the inputs must be {sorted(wanted)}, not {sorted(inputs)}."
            )
        for name, array in inputs.items():
            several = [tuple(shape.shape) for shape in wanted[name].enumeratedShapes.shapes]
            shapes = several or [tuple(wanted[name].shape)]
            if array.shape not in shapes:
                raise DeviceError(
                    f"{self._name}: {name} has shape {array.shape}; it must be one of {shapes}."
                )


def _wide(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _slice(x: Array, begin: Array, end: Array, **more: Array) -> tuple[slice | int, ...]:
    """The index of a slicing operator; a mask entry means from the start or to the end."""

    def masked(name: str, axis: int) -> bool:
        return name in more and bool(more[name][axis])

    found: list[slice | int] = []
    for axis in range(x.ndim):
        first = None if masked("begin_mask", axis) else int(begin[axis])
        last = None if masked("end_mask", axis) else int(end[axis])
        step = int(more["stride"][axis]) if "stride" in more else 1
        squeezed = masked("squeeze_mask", axis)
        found.append(int(begin[axis]) if squeezed else slice(first, last, step))
    return tuple(found)


def _slice_update(x: Array, update: Array, **where: Any) -> Array:
    changed = x.copy()
    part = changed[_slice(x, **where)]
    if part.shape != update.shape:
        raise DeviceError(f"slice_update: shape {update.shape} does not fit {part.shape}.")
    part[...] = update
    return changed


def _conv(x: Array, weight: Array, bias: Array | None = None, **_: Any) -> Array:
    if weight.shape[2:] != (1, 1):
        raise DeviceError(f"conv: the evaluator supports 1x1 kernels, not {weight.shape[2:]}.")
    found: Array = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x, optimize=True)
    return found if bias is None else found + bias[:, None, None]


def _softmax(x: Array, axis: int = -1) -> Any:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _attention(query: Array, key: Array, value: Array, attn_mask: Array) -> Any:
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(np.float32(query.shape[-1]))
    return _softmax(scores + attn_mask) @ value


def _topk(x: Array, k: int, axis: int, **_: Any) -> tuple[Array, Array]:
    order = np.argsort(-x, axis=axis, kind="stable").take(range(k), axis=axis)
    return np.take_along_axis(x, order, axis=axis), order


def _spread(part: Array, shape: tuple[int, ...]) -> Array:
    """Each entry of `part` repeated over its block of `shape`."""
    for axis, size in enumerate(shape):
        if part.shape[axis] not in (1, size):
            part = part.repeat(size // part.shape[axis], axis=axis)
    return part


def _palette(indices: Array, lut: Array) -> Array:
    """Look up `indices` in `lut` [groups per axis…, entries, 1]."""
    sizes = indices.shape
    places = zip(np.ogrid[tuple(map(slice, sizes))], lut.shape, sizes, strict=False)
    groups = (place * count // size for place, count, size in places)
    found: Array = lut[(*groups, indices, 0)]
    return found


def _transposed(x: Array, yes: bool) -> Array:
    return x.swapaxes(-1, -2) if yes else x


_MOVES: dict[str, Callable[..., Any]] = {
    "concat": lambda values, axis, **_: np.concatenate(values, axis=axis),
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "identity": lambda x: x,
    "gather": lambda x, indices, axis, **_: np.take(x, indices, axis=axis),
    "reshape": lambda x, shape: x.reshape(tuple(shape)),
    "shape": lambda x: np.array(x.shape),
    "slice_by_index": lambda x, **where: x[_slice(x, **where)],
    "slice_update": _slice_update,
    "transpose": lambda x, perm: x.transpose(tuple(perm)),
}
"""Operators that compute no new values, so that there is nothing to round."""
_OPERATORS: dict[str, Callable[..., Any]] = {
    **_MOVES,
    "abs": lambda x: np.abs(x),
    "add": lambda x, y: x + y,
    "cast": lambda x, **_: x,
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "constexpr_blockwise_shift_scale": lambda data, scale: data * _spread(scale, data.shape),
    "constexpr_lut_to_dense": _palette,
    "conv": _conv,
    "exp": lambda x: np.exp(x),
    "greater": lambda x, y: x > y,
    "linear": lambda x, weight, bias=0: x @ weight.T + bias,
    "log": lambda x, epsilon: np.log(x + epsilon),
    "matmul": lambda x, y, transpose_x, transpose_y: (
        _transposed(x, transpose_x) @ _transposed(y, transpose_y)
    ),
    "mul": lambda x, y: x * y,
    "range_1d": lambda start, end, step: np.arange(start, end, step),
    "real_div": lambda x, y: x / y,
    "reduce_max": lambda x, axes, keep_dims: x.max(tuple(axes), keepdims=keep_dims),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(axes), keepdims=keep_dims),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(tuple(axes), keepdims=keep_dims),
    "rsqrt": lambda x, epsilon: 1 / np.sqrt(x + epsilon),
    "scaled_dot_product_attention": _attention,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softmax": _softmax,
    "sub": lambda x, y: x - y,
    "topk": _topk,
}
