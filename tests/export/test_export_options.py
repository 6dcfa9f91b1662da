"""Options that no export can honour are refused before any model is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FAMILIES, Checkpoint

from mirror_edge.errors import OptionError
from mirror_edge.export import export
from mirror_edge.export.exit_head import Correction
from mirror_edge.export.options import ExportOptions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "tflite"}, "--format tflite: must be one of onnx, coreml"),
        (
            {"precision": "int2"},
            "--precision int2: must be one of int4, int4-mixed, int8, fp16, fp32",
        ),
        ({"draft_precision": "int2"}, "--draft-precision int2: must be one of int4"),
        (
            {"format": "coreml", "precision": "int4-mixed"},
            "--precision int4-mixed: is for --format onnx. Give int4 or int8",
        ),
        ({"draft_for": "abacus"}, "--draft-for abacus: must be one of qnn, openvino"),
        ({"draft_for": "coreml"}, r"--draft-for coreml: .* Give --format coreml instead"),
        ({"draft_vocabulary": 0}, "--draft-vocabulary 0: must be 1 or more"),
        ({"context": 128}, "--context: is for --format coreml"),
        ({"exit_rank": 64}, "--exit-rank 64: there is no --calibrate text"),
        ({"exit_rank": 7, "calibrate": ["a.txt"]}, "--exit-rank 7: must be from 8 to 128"),
        ({"format": "coreml", "calibrate": ["a.txt"]}, "--calibrate: is for --format onnx"),
        ({"format": "coreml", "exit_rank": 64}, "--calibrate: is for --format onnx"),
        ({"format": "coreml", "draft_for": "qnn"}, "--draft-for qnn: is for --format onnx"),
        ({"format": "coreml", "draft_vocabulary": 9}, "--draft-vocabulary 9: is for --format onnx"),
    ],
)
def test_they_are_refused_by_name(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        export("no such target", None, tmp_path / "bundle", **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_models_whose_residuals_stay_wide_are_refused_in_fp16(
    family: str, checkpoint: Checkpoint, target: Path, tmp_path: Path
) -> None:
    architecture, config = FAMILIES[family]
    wide = checkpoint(architecture, **config)
    with pytest.raises(OptionError, match=r"--precision fp16: .* stay in float32"):
        export(wide, None, tmp_path / "bundle", precision="fp16")
    with pytest.raises(OptionError, match=r"--draft-precision fp16: .* stay in float32"):
        export(target, wide, tmp_path / "bundle", draft_precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_correction_is_either_given_or_fitted() -> None:
    correction = Correction(np.zeros((4, 8), np.float32), np.zeros((8, 4), np.float32))
    assert ExportOptions(correction=correction).correction is correction
    with pytest.raises(OptionError, match=r"correction: .* Give only one of the two"):
        ExportOptions(correction=correction, calibrate=["a.txt"])


def test_precisions_follow_from_one_another() -> None:
    assert ExportOptions().target_precision == ExportOptions().guide_precision == "int4"
    assert ExportOptions(precision="fp32").guide_precision == "fp32"
    assert ExportOptions(draft_precision="int8").target_precision == "int4"
    assert ExportOptions(precision="fp32", draft_precision="int8").guide_precision == "int8"
