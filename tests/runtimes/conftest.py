"""Fixtures for devices: tests of a missing device are skipped, unless it is required."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from mirror_edge import bundle as bundles
from mirror_edge.devices import Device
from mirror_edge.errors import DeviceError, MissingExtraError
from mirror_edge.runtimes.onnx.providers import CPU, QNN, WEBGPU, Provider
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.trace import Trace

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))  # for tiny.py

REQUIRED = os.environ.get("MIRROR_EDGE_TEST_DEVICES", "").split()
"""Device kinds whose tests fail rather than being skipped, as in CI."""

SetupMaker = Callable[[], Setup]


def setup_on(provider: Provider) -> SetupMaker:
    try:
        place = provider.place(Device(provider.kind))
    except (DeviceError, MissingExtraError) as error:
        if provider.kind in REQUIRED:
            raise
        pytest.skip(str(error))
    return lambda: Setup(place, threads=1, cores=(), trace=Trace())


@pytest.fixture(scope="session")
def on_cpu() -> SetupMaker:
    return setup_on(CPU)


@pytest.fixture(scope="session")
def on_webgpu() -> SetupMaker:
    return setup_on(WEBGPU)


@pytest.fixture(scope="session")
def on_qnn() -> SetupMaker:
    return setup_on(QNN)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pair, with its draft at fixed shapes as well, as exported for an NPU."""
    from mirror_edge.export.fixed import fixed_graph, fixed_spec

    folder = tmp_path_factory.mktemp("pair") / "bundle"
    shutil.copytree(bundles.demo(), folder)
    spec = bundles.read(folder, verify=False).manifest
    assert spec.draft is not None
    free = onnx.load(folder / spec.draft.graph, load_external_data=False)
    model, streams = spec.draft.model, spec.draft.streams
    fixed = fixed_spec(model, streams)
    for name, rollout in ((fixed.prefill, False), (fixed.rollout, True)):
        graph = fixed_graph(free, model, fixed, streams, rollout=rollout, named=spec.draft.named)
        onnx.save(graph, folder / name)
    bundles.write_manifest(folder, spec.name, spec.target, replace(spec.draft, fixed=fixed))
    return folder
