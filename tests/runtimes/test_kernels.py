"""Graphs of one operator: validity, and results on the CPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mirror_edge.devices import Device
from mirror_edge.runtimes.onnx import kernels
from mirror_edge.runtimes.onnx.providers import CPU
from mirror_edge.runtimes.onnx.session import Session, Setup
from mirror_edge.trace import Trace

TYPES = ["float32", "float16"]
ALL = [
    kernels.attention(),
    kernels.likeliest(),
    *(kernels.copy(dtype) for dtype in TYPES),
    *(kernels.double(dtype) for dtype in TYPES),
    *(kernels.pick(dtype) for dtype in TYPES),
]


@pytest.mark.parametrize("graph", ALL)
def test_a_kernel_is_a_graph_that_onnx_accepts(graph: bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)


def run(graph: bytes, inputs: dict[str, np.ndarray], output: str, like: np.ndarray) -> np.ndarray:
    session = Session(graph, Setup(CPU.place(Device("cpu")), 1, (), Trace()), "kernel")
    session.run(inputs, {output: like})
    return like


@pytest.mark.parametrize("dtype", TYPES)
def test_caches_are_doubled_and_rows_are_picked(dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((1, 2, 5, 16)).astype(dtype)
    doubled = run(kernels.double(dtype), {"rows": rows}, "doubled", np.empty((1, 2, 10, 16), dtype))
    np.testing.assert_array_equal(doubled[:, :, :5], rows)
    slots = np.array([0, 3, 2, 2, 4])
    asked = {"rows": rows, "slots": slots}
    picked = run(kernels.pick(dtype), asked, "picked", np.empty_like(rows))
    np.testing.assert_array_equal(picked, rows[:, :, slots])


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_are_copied(dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((1, 3, 16)).astype(dtype)
    copied = run(kernels.copy(dtype), {"rows": rows}, "copied", np.empty_like(rows))
    np.testing.assert_array_equal(copied, rows)


def test_the_likeliest_token_is_the_first_of_equals() -> None:
    logits = np.array([[[1.0, 3.0, 3.0], [5.0, 0.0, 5.0]]], dtype=np.float32)
    ids = run(kernels.likeliest(), {"logits": logits}, "ids", np.empty((1, 2), np.int64))
    assert ids.tolist() == [[1, 0]]
