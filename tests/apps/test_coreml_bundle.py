"""Commands on a Core ML bundle, on a system without Core ML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mirror_edge import bundle as bundles
from mirror_edge.apps.cli import app
from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.coreml import placement

pytest.importorskip("torch")
pytest.importorskip("coremltools")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The unit that each package's plan was asked for, in place of Core ML's plan."""
    units: dict[str, str] = {}

    def plan(package: Path, unit: str) -> dict[str, dict[str, int]]:
        units[package.parent.name] = unit
        return {"main": {unit: 1}}

    monkeypatch.setattr(placement, "placement", plan)
    return units


@pytest.mark.parametrize(
    ("devices", "units"),
    [
        ((), {"target": "gpu", "draft": "ane"}),
        (("--target-device", "coreml:cpu"), {"target": "cpu", "draft": "ane"}),
        (
            ("--target-device", "coreml", "--draft-device", "coreml:all"),
            {"target": "gpu", "draft": "all"},
        ),
    ],
)
def test_placement_is_planned_for_the_devices_that_are_named(
    devices: tuple[str, ...], units: dict[str, str], coreml: Path, planned: dict[str, str]
) -> None:
    command = ["inspect", str(coreml), "--placement", "--json", *devices]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert planned == units
    assert {name.split("/")[0] for name in json.loads(done.stdout)["placement"]} == {
        "target",
        "draft",
    }


@pytest.mark.parametrize(
    ("device", "message"),
    [("cpu", "'cpu' runs onnx graphs"), ("coreml:evaluator", "coreml:evaluator'.* no plan")],
)
def test_placement_has_no_plan_for_other_devices(
    device: str, message: str, coreml: Path, planned: dict[str, str]
) -> None:
    command = ["inspect", str(coreml), "--placement", "--draft-device", device]
    with pytest.raises(DeviceError, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert "draft" not in planned


def test_coverage_runs_in_the_evaluator(
    coreml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    file = tmp_path / "text.txt"
    file.write_text("Once upon a time there was a little lighthouse on a small island. " * 20)
    measured = []
    for bundle in (bundles.demo(), coreml):
        command = ["coverage", str(file), "--rows", "64", "--bundle", str(bundle), "--json"]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        measured.append(json.loads(done.stdout))
    onnx, apple = measured
    assert apple["rows"] == onnx["rows"] >= 64
    assert apple["coverage"] == onnx["coverage"]
