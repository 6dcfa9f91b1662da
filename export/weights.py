"""The external data of a model: one file on disk, referenced by offset, never held in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mirror_edge.errors import ExportError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["append", "compact", "gather", "load", "overwrite", "size", "store"]

_INLINE = 1024
"""Tensors of up to this many bytes stay inside the graph."""
_ALIGN = 4096
"""A page, so that files can be mapped into memory."""


def _location(tensor: TensorProto) -> dict[str, str]:
    """File, offset and length of an external tensor."""
    return {entry.key: entry.value for entry in tensor.external_data}


def load(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """A tensor's values, memory-mapped when they are external."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    where = _location(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(
        folder / where["location"],
        dtype,
        "r",
        offset=int(where.get("offset", 0)),
        shape=tuple(tensor.dims),
    )


def overwrite(tensor: TensorProto, values: NDArray[Any], folder: Path) -> None:
    """Replace a tensor's values with as many other ones."""
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.data_location != TensorProto.EXTERNAL:
        tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
        return
    where = _location(tensor)
    file, offset = folder / where["location"], int(where.get("offset", 0))
    np.memmap(file, dtype, "r+", offset=offset, shape=tuple(tensor.dims))[...] = values


def append(tensor: TensorProto, values: NDArray[Any], file: Path) -> None:
    """Append `values` to `file` and let `tensor` refer to them."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    with file.open("ab") as stream:
        stream.write(bytes(-stream.tell() % _ALIGN))
        _refer(tensor, file.name, stream.tell(), data.size)
        stream.write(data.data)
    del tensor.dims[:]
    tensor.dims.extend(values.shape)
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
        tensor.ClearField(field)


def store(name: str, values: NDArray[Any], file: Path) -> TensorProto:
    """A new tensor whose values are appended to `file`."""
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = TensorProto(name=name, data_type=kind)
    append(tensor, values, file)
    return tensor


def gather(model: ModelProto, folder: Path, file: Path, *, move: bool) -> None:
    """Bring all weights of a model in `folder` into `file`; with `move`, `folder` loses them.

    Raises:
        ExportError: naming a file of weights that is missing, or outside of `folder`.
    """
    starts: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = _location(tensor)
        name = where["location"]
        if name not in starts:
            source = folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ExportError(f"{folder}: its graph points to a file outside of it: {name}.")
            if not source.is_file():
                raise ExportError(
                    f"{source}: is missing, but contains the model's weights. "
                    "Copy the whole model folder again."
                )
            starts[name] = _take(source, file, move=move)
        length = int(where.get("length", 0)) or size(tensor)
        _refer(tensor, file.name, starts[name] + int(where.get("offset", 0)), length)
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and size(tensor) > _INLINE:
            append(tensor, load(tensor, folder), file)


def compact(model: ModelProto, file: Path) -> None:
    """Rewrite `file` with only what `model` refers to."""
    partial = file.with_name(file.name + ".partial")
    partial.touch()
    moved: dict[int, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            before = int(_location(tensor).get("offset", 0))
            if before not in moved:  # some tensors share their values
                append(tensor, load(tensor, file.parent), partial)
                moved[before] = int(_location(tensor)["offset"])
            _refer(tensor, file.name, moved[before], size(tensor))
    partial.replace(file)


def _take(source: Path, file: Path, *, move: bool) -> int:
    """Append the file `source` to `file`; returns its offset."""
    if not file.exists():
        if move:
            source.rename(file)
        else:
            shutil.copyfile(source, file)
        return 0
    with file.open("ab") as to, source.open("rb") as stream:
        to.write(bytes(-to.tell() % _ALIGN))
        start = to.tell()
        shutil.copyfileobj(stream, to, 1 << 22)
    if move:
        source.unlink()
    return start


def _refer(tensor: TensorProto, name: str, offset: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, entry in (("location", name), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(entry))


def size(tensor: TensorProto) -> int:
    """The size of a tensor's values in bytes."""
    width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * width
