"""`devices`, `cache` and `inspect --placement`, run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "mirror-edge")
OTHER = str(Path(__file__).parents[1] / "other_runtime")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": OTHER, "COLUMNS": "200"} | environment,
    )


def test_the_list_names_what_is_there_and_how_to_get_the_rest() -> None:
    shown = run("devices").stdout
    assert "CPUExecutionProvider" in shown
    listed = {one["name"]: one for one in json.loads(run("devices", "--json").stdout)["devices"]}
    assert listed["cpu"]["usable"]
    assert listed["abacus"]["roles"] == ["target", "draft"]
    absent = [one for one in listed.values() if not one["usable"]]
    assert all("needs" in one["note"] and one["note"] in shown for one in absent)


def test_a_probe_has_a_line_for_what_crashes_and_the_program_goes_on() -> None:
    tried = json.loads(run("devices", "--probe", "--json").stdout)["probes"]
    found = {(one["device"], one["role"]): one for one in tried}
    assert not found["cpu", "target"]["failure"]
    assert found["cpu", "draft"]["step"] > 0
    assert found["aborting", "target"]["failure"].startswith("crashed with SIGABRT")


def test_placement_has_the_share_of_every_graph() -> None:
    asked = ("inspect", "--placement", "--target-device", "cpu", "--draft-device", "cpu")
    placed = json.loads(run(*asked, "--json").stdout)["placement"]
    assert placed.keys() == {"prefix", "exit", "suffix", "draft"}
    assert all(set(nodes) == {"CPUExecutionProvider"} for nodes in placed.values())
    assert "100%" in run(*asked).stdout
    refused = run("inspect", "--draft-device", "cpu")
    assert refused.returncode == 2
    assert "require --placement" in refused.stderr


def test_the_cache_is_cleared(tmp_path: Path) -> None:
    blob = tmp_path / "compiled" / "one" / "graph.bin"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(2_000_000))
    cleared = run("cache", "clear", MIRROR_EDGE_CACHE=str(tmp_path))
    assert cleared.stdout == f"{tmp_path}: 2.0 MB deleted.\n"
    assert not blob.exists()


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda", "needs the package onnxruntime-gpu"), ("tpu", "unknown device 'tpu'; choose one of")],
)
def test_a_device_that_is_not_there_is_refused(device: str, said: str) -> None:
    refused = run("generate", "Hello!", "--target-device", device)
    assert refused.returncode == 2
    assert said in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
