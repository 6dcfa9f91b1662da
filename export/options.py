"""The options of an export: everything it is asked for except its models and its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mirror_edge.bundle import Format, Precision
from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from mirror_edge.export.exit_head import Correction

__all__ = ["DEFAULT_PRECISION", "ExportOptions"]

DEFAULT_PRECISION: Precision = "int4"
_RANKS, _DEFAULT_RANK = range(8, 129), 64
_FIXED_KINDS = ("qnn", "openvino")
"""Kinds of devices that run a draft at fixed shapes; one pair of graphs serves them all."""


@dataclass(frozen=True)
class ExportOptions:
    """What `mirror_edge.export.export` takes, under the same names."""

    exit_layer: int | None = None
    precision: Precision | None = None
    draft_precision: Precision | None = None
    exit_tokens: Sequence[int] | None = None
    correction: Correction | None = None
    calibrate: Sequence[str | Path] = ()
    exit_rank: int | None = None
    format: Format = "onnx"
    context: int | None = None
    draft_for: str | None = None
    draft_vocabulary: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no model allows, and options that exclude one another.

        Raises:
            OptionError: naming the option, what is wrong with it, and what to do.
        """
        _refuse_unknown("--format", self.format, get_args(Format))
        _refuse_unknown("--precision", self.precision, get_args(Precision))
        _refuse_unknown("--draft-precision", self.draft_precision, get_args(Precision))
        if self.format == "coreml":
            self._refuse_onnx_only()
        else:
            self._refuse_coreml_only()
        _refuse_unknown("--draft-for", self.draft_for, _FIXED_KINDS)
        if self.draft_vocabulary is not None and self.draft_vocabulary < 1:
            raise OptionError(f"--draft-vocabulary {self.draft_vocabulary}: must be 1 or more.")
        self._refuse_calibration()

    @property
    def target_precision(self) -> Precision:
        """The precision that a target's weights are brought to, if they are not quantised yet."""
        return self.precision or DEFAULT_PRECISION

    @property
    def guide_precision(self) -> Precision:
        """The same for the draft's weights, all in int4 where the target's are int4-mixed."""
        same = "int4" if self.target_precision == "int4-mixed" else self.target_precision
        return self.draft_precision or same

    @property
    def fitted_rank(self) -> int:
        """The rank of the correction that calibration fits."""
        return self.exit_rank or _DEFAULT_RANK

    def _refuse_onnx_only(self) -> None:
        if self.calibrate or self.exit_rank is not None:
            raise OptionError(
                "--calibrate: is for --format onnx. Export that bundle first, then convert it: "
                "its exit layer and exit head are kept."
            )
        if self.draft_for is not None:
            raise OptionError(
                f"--draft-for {self.draft_for}: is for --format onnx; with --format coreml every "
                "draft is made for the Neural Engine. Omit it."
            )
        if self.draft_vocabulary is not None:
            raise OptionError(
                f"--draft-vocabulary {self.draft_vocabulary}: is for --format onnx. Omit it."
            )
        for option, given in (
            ("--precision", self.precision),
            ("--draft-precision", self.draft_precision),
        ):
            if given == "int4-mixed":
                raise OptionError(f"{option} {given}: is for --format onnx. Give int4 or int8.")

    def _refuse_coreml_only(self) -> None:
        if self.draft_for == "coreml":
            raise OptionError(
                "--draft-for coreml: the Neural Engine runs Core ML programs, and target and draft "
                "are then both in a bundle of that format. Give --format coreml instead."
            )
        if self.context is not None:
            raise OptionError(
                "--context: is for --format coreml; the caches of ONNX bundles grow as needed. "
                "Omit it."
            )

    def _refuse_calibration(self) -> None:
        rank = self.exit_rank
        if rank is not None and not self.calibrate:
            raise OptionError(f"--exit-rank {rank}: there is no --calibrate text to fit it on.")
        if rank is not None and rank not in _RANKS:
            raise OptionError(f"--exit-rank {rank}: must be from {_RANKS[0]} to {_RANKS[-1]}.")
        if self.calibrate and self.correction is not None:
            raise OptionError("correction: is fitted by --calibrate. Give only one of the two.")


def _refuse_unknown(option: str, given: Any, known: Sequence[str]) -> None:
    if given is not None and given not in known:
        raise OptionError(f"{option} {given}: must be one of {', '.join(known)}.")
