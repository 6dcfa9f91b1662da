"""The simulator beside this machine: what is compared, not how fast the machine is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mirror_edge.runtimes.profile import read
from mirror_edge.runtimes.recording import Recording

PREDICT = [sys.executable, "-P", "-m", "mirror_edge.apps.predict"]


def test_simulated_answers_take_the_steps_of_the_real_ones(tmp_path: Path) -> None:
    profile, recording = tmp_path / "here.toml", tmp_path / "recording.json"
    words = ("--prompts", "2", "--new-tokens", "48", "--repeat", "2", "--seconds", "1", "--json")
    files = ("--profile", str(profile), "--recording", str(recording))
    done = subprocess.run(
        [*PREDICT, *words, *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    modes = json.loads(done.stdout)["modes"]
    assert list(modes) == ["ar", "sd", "mirror"]
    for found in modes.values():
        # The same text, so the same steps; the last windows may differ, for lack of room.
        assert found["predicted_step"] == pytest.approx(found["measured_step"], rel=0.1)
        # Of two, the median is the mean.
        assert found["ratio"] == pytest.approx((found["least"] + found["most"]) / 2)
        assert 0.0 < found["least"] <= found["most"]
        assert found["measured"] > 0.0
    machine = read(str(profile))
    assert machine.window == 4
    assert machine.costs.prefix(8) > 0.0
    said = Recording.read(recording).draft
    assert machine.text.agreement == pytest.approx(sum(said) / len(said), abs=1e-4)


def test_a_device_that_is_no_cpu_is_refused() -> None:
    words = ("--target-device", "toaster")
    done = subprocess.run(
        [*PREDICT, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "toaster" in done.stderr
    assert "Traceback" not in done.stderr
