"""The evaluator of Core ML programs, on small programs made here."""

from __future__ import annotations

import gc
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.coreml.library import coremltools
from mirror_edge.runtimes.mil import Evaluator

pytest.importorskip("coremltools")


@pytest.fixture(scope="module")
def tools() -> Any:
    return coremltools()


def save(tools: Any, body: Any, path: Path, *shapes: tuple[int, ...]) -> Path:
    """Save a package whose function `main` applies `body` to float32 inputs."""
    mb = tools.converters.mil.Builder
    program = mb.program(
        input_specs=[mb.TensorSpec(shape) for shape in shapes], opset_version=tools.target.iOS18
    )(body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About temporary folders left to the garbage collector.
        tools.convert(
            program,
            convert_to="mlprogram",
            compute_precision=tools.precision.FLOAT32,
            minimum_deployment_target=tools.target.iOS18,
            skip_model_load=True,
            package_dir=str(path),
        )
        gc.collect()
    return path


def test_an_unsupported_operator_is_named(tools: Any, tmp_path: Path) -> None:
    mb = tools.converters.mil.Builder
    package = save(tools, lambda x: mb.erf(x=x, name="it"), tmp_path / "a.mlpackage", (2, 3))
    with pytest.raises(DeviceError, match=rf"{package}: main: .* has no operator erf \(at it\)\."):
        Evaluator(package, "main")


@pytest.fixture(scope="module")
def package(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mb = tools.converters.mil.Builder
    weight = np.arange(12 * 700, dtype=np.float32).reshape(12, 700) / 1000

    def body(x: Any) -> Any:
        return mb.linear(x=mb.silu(x=x), weight=weight, name="y")

    return save(tools, body, tmp_path_factory.mktemp("mil") / "b.mlpackage", (1, 700))


def test_weights_come_from_the_weight_file(package: Path) -> None:
    x = np.linspace(-3, 3, 700, dtype=np.float32)[None]
    weight = np.arange(12 * 700, dtype=np.float32).reshape(12, 700) / 1000
    found = Evaluator(package, "main").predict({"x": x})
    np.testing.assert_allclose(found["y"], x / (1 + np.exp(-x)) @ weight.T, rtol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"the inputs must be \['x'\], not \[\]"),
        ({"x": (1, 700), "z": (1,)}, r"the inputs must be \['x'\], not \['x', 'z'\]"),
        ({"x": (2, 700)}, r"x has shape \(2, 700\); it must be one of \[\(1, 700\)\]"),
    ],
)
def test_invalid_inputs_are_refused(package: Path, inputs: dict[str, Any], message: str) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in inputs.items()}
    with pytest.raises(DeviceError, match=rf"{package}: main: {message}"):
        Evaluator(package, "main").predict(arrays)


def test_a_missing_function_is_refused(package: Path) -> None:
    with pytest.raises(DeviceError, match=rf"{package}: has no function 'prefix'"):
        Evaluator(package, "prefix")


def test_a_damaged_weight_file_is_refused(package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))
    file = copy / "Data/com.apple.CoreML/weights/weight.bin"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(DeviceError, match=r"weight\.bin has no tensor at \d+"):
        Evaluator(copy, "main").predict({"x": np.zeros((1, 700), np.float32)})
