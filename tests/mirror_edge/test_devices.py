"""Devices by name."""

from __future__ import annotations

from typing import Any

import pytest

from mirror_edge import devices
from mirror_edge.devices import Device, runtime_for
from mirror_edge.errors import DeviceError


@pytest.fixture(autouse=True)
def _five_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: frozenset({0, 1, 2, 3, 8}))


@pytest.mark.parametrize(
    ("text", "kind", "cores", "name"),
    [
        ("cpu", "cpu", (), "cpu"),
        ("cpu:0", "cpu", (0,), "cpu:0"),
        ("cpu:0-3", "cpu", (0, 1, 2, 3), "cpu:0,1,2,3"),
        ("cpu:0,2", "cpu", (0, 2), "cpu:0,2"),
        ("cpu:8,1-2", "cpu", (8, 1, 2), "cpu:8,1,2"),
        ("cpu:2-2", "cpu", (2,), "cpu:2"),
        ("webgpu", "webgpu", (), "webgpu"),
        ("coreml", "coreml", (), "coreml"),
    ],
)
def test_a_device_is_read_and_written(
    text: str, kind: str, cores: tuple[int, ...], name: str
) -> None:
    device = Device.parse(text)
    assert device == Device(kind, cores)
    assert str(device) == name
    assert Device.parse(name) == device


def test_a_device_may_have_a_unit() -> None:
    device = Device.parse("coreml:gpu")
    assert device == Device("coreml", unit="gpu")
    assert str(device) == "coreml:gpu"


@pytest.mark.parametrize(
    "detail", ["x", "0-", "-1", "0,,1", "0;1", "0-x", "1.5", "0--3", "3-0", "0,2-1"]
)
def test_what_names_no_cores_is_refused(detail: str) -> None:
    with pytest.raises(DeviceError, match=r"names no cores\. Write cpu:0, cpu:0-3 or cpu:0,2"):
        Device.parse(f"cpu:{detail}")


@pytest.mark.parametrize(("detail", "absent"), [("4", 4), ("0-8", 4), ("8,9", 9), ("77,0", 77)])
def test_cores_this_process_may_not_use_are_refused(detail: str, absent: int) -> None:
    with pytest.raises(DeviceError, match=f"cannot use core {absent}; it has 0, 1, 2, 3, 8"):
        Device.parse(f"cpu:{detail}")


class FakePoint:
    """An entry point of another package."""

    def __init__(self, name: str, runtime: type) -> None:
        self.name, self._runtime = name, runtime

    def load(self) -> type:
        return self._runtime


class FakeRuntime:
    """A runtime of another package."""

    formats = ("onnx",)


def test_a_runtime_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*, group: str) -> list[Any]:
        assert group == "mirror_edge.runtimes"
        return [FakePoint("tpu", FakeRuntime), FakePoint("abacus", FakeRuntime)]

    monkeypatch.setattr(devices, "entry_points", points)
    assert isinstance(runtime_for(Device("tpu", (0,)), "onnx"), FakeRuntime)
    with pytest.raises(DeviceError, match="unknown device 'gpu'; choose one of abacus, tpu"):
        runtime_for(Device("gpu"), "onnx")
    with pytest.raises(
        DeviceError, match=r"'tpu:1' runs onnx graphs, and this bundle's are coreml"
    ):
        runtime_for(Device("tpu", unit="1"), "coreml")


def test_the_cpu_is_registered() -> None:
    runtime = runtime_for(Device("cpu"), "onnx")
    assert callable(runtime.open_target)
    assert callable(runtime.open_draft)
