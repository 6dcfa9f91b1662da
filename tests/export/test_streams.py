"""The file that holds a draft's streams: written, read, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import random_streams

from mirror_edge.errors import ExportError
from mirror_edge.export.streams import STREAMS_FILE, Streams

safetensors = pytest.importorskip("safetensors.numpy")

GOOD = {"offset": (2, 64), "down": (64, 8), "up": (2, 8, 64)}


def store(folder: Path, metadata: dict[str, str] | None = None, **tensors: Any) -> None:
    given = {name: np.zeros(shape, np.float32) for name, shape in GOOD.items()} | tensors
    kept = {name: tensor for name, tensor in given.items() if tensor is not None}
    metadata = {"layers": "2"} if metadata is None else metadata
    safetensors.save_file(kept, folder / STREAMS_FILE, metadata=metadata)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    streams = random_streams(3, layers=2)
    streams.write(tmp_path)
    read = Streams.read(tmp_path)
    assert read is not None
    assert (read.layers, read.count, read.hidden) == (2, 3, 64)
    for name in GOOD:
        np.testing.assert_array_equal(getattr(read, name), getattr(streams, name))
    assert [path.name for path in tmp_path.iterdir()] == [STREAMS_FILE]


def test_a_checkpoint_without_the_file_has_no_streams(tmp_path: Path) -> None:
    assert Streams.read(tmp_path) is None


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    store(tmp_path, offset=np.full((2, 64), 0.5, np.float16))
    read = Streams.read(tmp_path)
    assert read is not None
    assert read.offset.dtype == np.float32


def test_each_stream_starts_at_its_own_step_from_the_residual() -> None:
    streams = random_streams(2, layers=1)
    residual = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    found = streams.starts(residual)
    for k in range(2):
        own = residual + streams.offset[k] + (residual @ streams.down) @ streams.up[k]
        np.testing.assert_allclose(found[:, k], own, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"offset": np.zeros(64, np.float32)}, r"offset is \[64\], not \[s, hidden\]"),
        ({"offset": np.zeros((0, 64), np.float32)}, r"offset is \[0, 64\]"),
        ({"down": np.zeros((32, 8), np.float32)}, r"their hidden sizes differ"),
        ({"up": np.zeros((3, 8, 64), np.float32)}, r"up is \[3, 8, 64\], not \[2, 8, 64\]"),
        ({"up": None}, "holds down, offset, not offset, down and up"),
        ({"more": np.zeros(1, np.float32)}, "holds down, more, offset, up"),
        ({"down": np.full((64, 8), np.nan, np.float32)}, "down has values that are not finite"),
        ({"down": np.zeros((64, 8), np.int32)}, "not floating-point"),
        ({"metadata": {}}, "does not give the number of layers"),
        ({"metadata": {"layers": "two"}}, "does not give the number of layers"),
        ({"metadata": {"layers": "0"}}, "layers is 0; it must be 1 or more"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    damage: dict[str, Any], message: str, tmp_path: Path
) -> None:
    store(tmp_path, **damage)
    with pytest.raises(ExportError, match=message) as refused:
        Streams.read(tmp_path)
    assert str(refused.value).startswith(str(tmp_path / STREAMS_FILE))


@pytest.mark.parametrize("damage", [lambda _: b"", lambda whole: whole[:100], lambda _: b"x" * 99])
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    store(tmp_path)
    file = tmp_path / STREAMS_FILE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ExportError, match="cannot be read as safetensors"):
        Streams.read(tmp_path)


@pytest.mark.parametrize(
    ("layers", "hidden", "message"), [(1, 64, "go through 2 layers"), (2, 32, "are 64 wide")]
)
def test_streams_of_another_draft_are_refused(
    layers: int, hidden: int, message: str, tmp_path: Path
) -> None:
    streams = random_streams(2, layers=2)
    streams.refuse_unless_for(tmp_path, 2, 64)
    with pytest.raises(ExportError, match=message):
        streams.refuse_unless_for(tmp_path, layers, hidden)
