"""Trying devices in child processes, and kinds of devices that another package adds."""

from __future__ import annotations

from pathlib import Path

import pytest

import mirror_edge
from mirror_edge import bundle as bundles
from mirror_edge.devices import all_devices
from mirror_edge.probe import probe

OTHER = Path(__file__).parents[1] / "other_runtime"


@pytest.fixture
def _other_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is installed, for children too."""
    monkeypatch.syspath_prepend(OTHER)
    monkeypatch.setenv("PYTHONPATH", str(OTHER))


@pytest.mark.usefixtures("_other_runtime")
def test_another_package_adds_a_kind_of_device(prompts: list[str]) -> None:
    assert "abacus" in {device.name for device in all_devices()}
    with mirror_edge.load(target_device="abacus", draft_device="abacus") as model:
        there = model.generate(prompts[0], max_new_tokens=12)
    with mirror_edge.load() as model:
        assert model.generate(prompts[0], max_new_tokens=12).tokens == there.tokens


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_probe_tells_times_the_difference_and_where_the_nodes_ran(role: str) -> None:
    tried = probe("cpu", role, bundles.demo())  # type: ignore[arg-type]
    assert not tried.failure
    assert min(tried.load, tried.first, tried.step) > 0
    assert tried.error == 0.0
    graphs = {"target": {"prefix", "exit", "suffix"}, "draft": {"draft"}}[role]
    assert tried.placed.keys() == graphs
    assert all(set(nodes) == {"CPUExecutionProvider"} for nodes in tried.placed.values())


@pytest.mark.usefixtures("_other_runtime")
def test_a_driver_that_ends_the_process_is_a_line_in_the_result() -> None:
    assert probe("aborting", "target", bundles.demo()).failure.startswith("crashed with SIGABRT")


@pytest.mark.usefixtures("_other_runtime")
def test_a_driver_that_hangs_is_ended() -> None:
    assert probe("sleeping", "target", bundles.demo(), patience=4.0).failure.startswith("hung")


def test_a_refusal_is_told_with_its_reason() -> None:
    assert "unknown device 'tpu'" in probe("tpu", "target", bundles.demo()).failure


def test_a_wrong_device_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from mirror_edge import probe as module
    from mirror_edge.devices import Device

    honest = module._opened

    def wrong(device: Device, *args: object) -> object:
        forward = honest(device, *args)  # type: ignore[arg-type]
        return (lambda: forward() + 0.5 * forward().std()) if device.kind == "abacus" else forward

    monkeypatch.syspath_prepend(OTHER)
    monkeypatch.setattr(module, "_opened", wrong)
    demo = bundles.read(bundles.demo(), verify=False)
    assert module._try(Device("abacus"), "target", demo).error == pytest.approx(0.5, 1e-5)
    assert module._try(Device("cpu"), "target", demo).error == 0.0
