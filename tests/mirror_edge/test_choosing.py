"""Which devices `auto` takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import mirror_edge
from mirror_edge import bundle as bundles
from mirror_edge import choosing
from mirror_edge.bundle import Bundle
from mirror_edge.choosing import Choice
from mirror_edge.devices import Device, Found, Role
from mirror_edge.probe import Probe

CPU = Found("cpu", "Cpu", "ort", "1.31", usable=True)
GPU = Found("gpu", "Gpu", "ort-gpu", "1.0", "gpu", usable=True)
NPU = Found("npu", "Npu", "ort-npu", "1.0", "npu", usable=True, roles=("draft",))
Try = Callable[[str, Role, Path], Probe]


class Machine:
    """Some devices, how long a step takes on each, and how often one was tried."""

    def __init__(self, *devices: Found, **steps: float) -> None:
        self.devices, self.steps = [CPU, *devices], {"cpu": 10.0, **steps}
        self.tries: list[tuple[str, Role]] = []
        self.failures: dict[str, str] = {}
        self.errors: dict[str, float] = {}

    def probe(self, device: str, role: Role, bundle: Path) -> Probe:
        assert bundle.is_dir()
        self.tries.append((device, role))
        if device in self.failures:
            return Probe(device, role, self.failures[device])
        error = self.errors.get(device, 1e-4)
        return Probe(device, role, step=self.steps[device] / 1e3, error=error)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Machine], Machine]:
    monkeypatch.setenv("MIRROR_EDGE_CACHE", str(tmp_path))

    def use(machine: Machine) -> Machine:
        monkeypatch.setattr(choosing, "all_devices", lambda: machine.devices)
        monkeypatch.setattr(choosing, "probe", machine.probe)
        return machine

    return use


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundles.read(bundles.demo(), verify=False)


Use = Callable[[Machine], Machine]
HEARD: list[str] = []


def choose(bundle: Bundle, target: str, draft: str) -> Choice:
    HEARD.clear()
    return choosing.choose(bundle, target, draft, HEARD.append)


def test_without_other_devices_nothing_is_tried(on: Use, bundle: Bundle) -> None:
    absent, emulated = replace(GPU, usable=False), replace(NPU, emulated=True)
    machine = on(Machine(absent, emulated))
    assert choose(bundle, "auto", "auto") == (Device("cpu"), Device("cpu"), "")
    assert machine.tries == []


def test_the_fastest_is_taken_and_the_line_says_why(on: Use, bundle: Bundle) -> None:
    on(Machine(GPU, NPU, gpu=4.0, npu=2.0))
    assert choose(bundle, "auto", "auto") == (
        Device("gpu"),
        Device("npu"),
        "target on gpu (gpu 4.0 ms, cpu 10.0 ms); draft on npu (npu 2.0 ms, cpu 10.0 ms)",
    )


def test_a_slow_device_is_not_taken(on: Use, bundle: Bundle) -> None:
    on(Machine(GPU, NPU, gpu=40.0, npu=20.0))
    target, draft, reason = choose(bundle, "auto", "auto")
    assert (target, draft) == (Device("cpu"), Device("cpu"))
    assert "target on cpu (gpu 40.0 ms, cpu 10.0 ms)" in reason


def test_a_device_that_fails_or_is_wrong_is_not_taken(on: Use, bundle: Bundle) -> None:
    machine = Machine(GPU, NPU, gpu=1.0, npu=1.0)
    machine.failures["gpu"] = "crashed with SIGABRT"
    machine.errors["npu"] = 0.7
    on(machine)
    target, draft, reason = choose(bundle, "auto", "auto")
    assert (target, draft) == (Device("cpu"), Device("cpu"))
    assert "gpu crashed with SIGABRT" in reason
    assert "npu off by 0.7" in reason


def test_target_and_draft_never_share_a_device_but_the_cpu(on: Use, bundle: Bundle) -> None:
    on(Machine(GPU, gpu=1.0))
    assert choose(bundle, "auto", "auto")[:2] == (Device("gpu"), Device("cpu"))
    assert choose(bundle, "gpu:0", "auto")[:2] == (Device("gpu", unit="0"), Device("cpu"))


def test_what_is_named_is_not_tried(on: Use, bundle: Bundle) -> None:
    machine = on(Machine(GPU, NPU, gpu=1.0, npu=1.0))
    assert choose(bundle, "npu", "gpu") == (Device("npu"), Device("gpu"), "")
    assert machine.tries == []
    choose(bundle, "cpu", "auto")
    assert {role for _, role in machine.tries} == {"draft"}


def test_a_bundle_without_a_draft_has_none_to_place(on: Use, bundle: Bundle) -> None:
    machine = on(Machine(GPU, NPU, gpu=1.0, npu=1.0))
    alone = Bundle(bundle.folder, replace(bundle.manifest, draft=None))
    assert choose(alone, "auto", "auto")[:2] == (Device("gpu"), Device("cpu"))
    assert {role for _, role in machine.tries} == {"target"}


@pytest.mark.parametrize("changed", [{"version": "1.1"}, {"driver": "551.2"}])
def test_a_device_is_tried_again_when_its_package_or_driver_changes(
    changed: dict[str, str], on: Use, bundle: Bundle
) -> None:
    machine = on(Machine(GPU, gpu=1.0))
    choose(bundle, "auto", "cpu")
    assert machine.tries == [("gpu", "target"), ("cpu", "target")]
    assert [line.partition(" (")[0] for line in HEARD] == [
        "Trying gpu for the target",
        "Trying cpu for the target",
    ]
    choose(bundle, "auto", "cpu")
    assert len(machine.tries) == 2
    assert HEARD == []
    machine.devices[1] = replace(GPU, **changed)
    choose(bundle, "auto", "cpu")
    assert machine.tries[2:] == [("gpu", "target")]


def test_a_device_that_failed_is_tried_again_a_day_later(
    on: Use, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = on(Machine(GPU, gpu=1.0))
    machine.failures["gpu"] = "out of memory"
    assert choose(bundle, "auto", "cpu").target == Device("cpu")
    machine.failures.clear()
    assert choose(bundle, "auto", "cpu").target == Device("cpu")
    later = time.time() + choosing._DAY
    monkeypatch.setattr(time, "time", lambda: later)
    assert choose(bundle, "auto", "cpu").target == Device("gpu")
    assert machine.tries == [("gpu", "target"), ("cpu", "target"), ("gpu", "target")]


def test_another_bundle_is_tried_anew(on: Use, bundle: Bundle, demo_copy: Path) -> None:
    machine = on(Machine(GPU, gpu=1.0))
    choose(bundle, "auto", "cpu")
    spec = bundle.manifest
    bundles.write_manifest(demo_copy, "another", spec.target, spec.draft)
    choose(bundles.read(demo_copy, verify=False), "auto", "cpu")
    assert len(machine.tries) == 4


def test_a_loaded_model_tells_its_choice(on: Use) -> None:
    on(Machine(GPU, gpu=40.0))
    with mirror_edge.load(draft_device="cpu") as model:
        assert model.choice == "target on cpu (gpu 40.0 ms, cpu 10.0 ms)"
