"""The trained part of speculative streaming, as it is stored next to a draft's checkpoint.

Speculative Streaming (arXiv 2402.11131), section 3: stream rows start from the main row's residual
in the middle of the stack. docs/streaming.md explains how they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from mirror_edge.errors import ExportError
from mirror_edge.export.source import install_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Weights = NDArray[np.float32]

__all__ = ["STREAMS_FILE", "Streams"]

STREAMS_FILE = "streams.safetensors"


@dataclass(frozen=True, eq=False)
class Streams:
    """How the `s` stream rows of a main row start, before the draft's top `layers` layers."""

    offset: Weights
    """[s, hidden]: one learned vector per stream."""
    down: Weights
    """[hidden, rank]: the half of the low-rank step that all streams share."""
    up: Weights
    """[s, rank, hidden]: the half that each stream has for itself."""
    layers: int
    """N_s, how many layers the streams go through."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together.

        Raises:
            ExportError: naming the tensor at fault.
        """
        for name, dims in (("offset", "[s, hidden]"), ("down", "[hidden, rank]")):
            if getattr(self, name).ndim != 2 or 0 in getattr(self, name).shape:
                raise ExportError(f"{name} is {list(getattr(self, name).shape)}, not {dims}.")
        if self.down.shape[0] != self.hidden:
            raise ExportError(
                f"down is {list(self.down.shape)} where offset is {list(self.offset.shape)}: "
                "their hidden sizes differ."
            )
        wanted = (self.count, self.down.shape[1], self.hidden)
        if self.up.shape != wanted:
            raise ExportError(f"up is {list(self.up.shape)}, not {list(wanted)}.")
        for name in ("offset", "down", "up"):
            if not np.isfinite(getattr(self, name)).all():
                raise ExportError(f"{name} has values that are not finite.")
        if self.layers < 1:
            raise ExportError(f"layers is {self.layers}; it must be 1 or more.")

    @property
    def count(self) -> int:
        """How many streams a main row has (s)."""
        return int(self.offset.shape[0])

    @property
    def hidden(self) -> int:
        """The width of the residual that they start from."""
        return int(self.offset.shape[1])

    def starts(self, residual: Weights) -> Weights:
        """The stream rows of main rows, [m, s, hidden], from their `residual` [m, hidden]."""
        step = np.einsum("mr,srh->msh", residual @ self.down, self.up)
        started: Weights = residual[:, None] + self.offset + step
        return started

    def refuse_unless_for(self, folder: Path, layers: int, hidden: int) -> None:
        """Refuse a draft of `layers` layers and this `hidden` size if they do not fit it.

        Raises:
            ExportError: naming the file.
        """
        file = folder / STREAMS_FILE
        if self.layers > layers:
            raise ExportError(
                f"{file}: its streams go through {self.layers} layers and the draft has {layers}. "
                "Copy the draft's folder again, or train its streams again."
            )
        if self.hidden != hidden:
            raise ExportError(
                f"{file}: its streams are {self.hidden} wide and the draft's rows {hidden}. "
                "Copy the draft's folder again, or train its streams again."
            )

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The streams of the checkpoint in `folder`; None if it has none.

        Raises:
            ExportError: naming the file that cannot be used, and why.
        """
        file = folder / STREAMS_FILE
        if not file.is_file():
            return None
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise install_line("safetensors") from error
        try:
            with safe_open(file, framework="numpy") as stored:
                metadata = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, TypeError) as error:
            raise ExportError(
                f"{file}: cannot be read as safetensors of float32 or float16 ({error}). "
                "Copy the draft's folder again, or train its streams again."
            ) from error
        try:
            if sorted(tensors) != ["down", "offset", "up"]:
                raise ExportError(f"holds {', '.join(sorted(tensors))}, not offset, down and up.")
            if any(tensor.dtype.kind != "f" for tensor in tensors.values()):
                raise ExportError("holds numbers that are not floating-point.")
            if not metadata.get("layers", "").isdecimal():
                raise ExportError("its metadata does not give the number of layers.")
            weights = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
            return cls(**weights, layers=int(metadata["layers"]))
        except ExportError as error:
            raise ExportError(
                f"{file}: {error} Copy the draft's folder again, or train its streams again."
            ) from error

    def write(self, folder: Path) -> None:
        """Write them next to the checkpoint in `folder`, whole or not at all."""
        from safetensors.numpy import save_file

        partial = folder / (STREAMS_FILE + ".partial")
        tensors = {
            name: np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            for name in ("offset", "down", "up")
        }
        try:
            save_file(tensors, partial, metadata={"layers": str(self.layers)})
            partial.replace(folder / STREAMS_FILE)
        finally:
            partial.unlink(missing_ok=True)
