"""The sweep: every setting answers, the best answer again, and a run goes on where it ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from mirror_edge.apps.heats import Log
from mirror_edge.apps.sweep import best, sweep
from mirror_edge.devices import usable_cores
from mirror_edge.errors import OptionError

SMALL = {
    "windows": "1,3",
    "branches": "2,4",
    "candidates": "2",
    "prompts": 1,
    "new_tokens": 16,
    "finals": 2,
    "target_threads": 1,
    "draft_threads": 1,
}
GRID = ["sd γ=1", "sd γ=3"] + [
    f"mirror γ={w} κ=2 R={r} exit=target" for w in (1, 3) for r in (2, 4)
]


def test_the_best_of_the_grid_answer_beside_auto_and_ar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    sweep(**SMALL, log=log, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["complete"]
    assert list(found["grid_over_ar"]) == ["ar", *GRID]
    assert found["same_text"]
    names = list(found["tokens_per_second"])
    chosen = best(Log.open(log, json.loads(log.read_text().splitlines()[0])["about"]))
    assert sorted(names) == sorted(["ar", "auto", chosen["sd"], chosen["mirror"]])
    for mode in ("sd", "mirror"):
        over = {n: o[1] for n, o in found["grid_over_ar"].items() if n.startswith(mode)}
        assert chosen[mode] == max(over, key=over.__getitem__)
    assert found["finals"] == 2
    assert found["best_fixed"] in names
    low, median, high = found["auto_over_best_fixed"]
    assert 0.0 < low <= median <= high
    assert all(ratio > 0.0 for ratio in found["measured_over_law"].values())
    before = log.read_text()
    sweep(**SMALL, log=log)
    assert log.read_text() == before
    shown = capsys.readouterr().out
    assert f"auto over {found['best_fixed']}: {median:.3f}" in shown


def test_a_run_that_was_ended_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    for count in (2, 3):
        with pytest.raises(typer.Exit):
            sweep(**SMALL, log=log, seconds=0.0)
        # No time is left, but for nothing: a heat at least is measured.
        assert len(log.read_text().splitlines()) == count
    assert "not all has been measured" in capsys.readouterr().err


@pytest.mark.skipif(len(usable_cores()) < 2, reason="one core")
def test_two_emulated_devices_are_called_that(capsys: pytest.CaptureFixture[str]) -> None:
    cores = {"target_device": "cpu:0", "draft_device": "cpu:1"}
    sweep(**{**SMALL, "windows": "1", "branches": "2", "finals": 1, **cores})
    assert "two emulated devices: target on core 0, draft on core 1" in capsys.readouterr().out


@pytest.mark.parametrize("windows", ["", "1,two", "0"])
def test_a_grid_that_is_none_is_refused(windows: str) -> None:
    with pytest.raises(OptionError, match="--windows is"):
        sweep(windows=windows)
    with pytest.raises(OptionError, match="--exit-heads is"):
        sweep(exit_heads="nowhere")
