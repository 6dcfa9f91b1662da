"""The sweep: every setting answers, the best answer again, and a run continues where it ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mirror_edge.apps.heats import Log
from mirror_edge.apps.program import single
from mirror_edge.apps.standings import best
from mirror_edge.apps.sweep import sweep
from mirror_edge.devices import usable_cores
from mirror_edge.errors import OptionError

SMALL = {
    "--windows": "1,3",
    "--branches": "2,4",
    "--candidates": "2",
    "--prompts": "1",
    "--new-tokens": "16",
    "--finals": "2",
    "--target-threads": "1",
    "--draft-threads": "1",
}
GRID = ["sd γ=1", "sd γ=3"] + [
    f"mirror γ={w} κ=2 R={r} exit=target" for w in (1, 3) for r in (2, 4)
]


def run(options: dict[str, str], *flags: str) -> Result:
    words = [word for option in options.items() for word in option]
    return CliRunner().invoke(single(sweep), [*words, *flags], catch_exceptions=False)


def test_the_best_of_the_grid_answer_beside_auto_and_ar(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    found = json.loads(run(SMALL | {"--log": str(log)}, "--json").stdout)
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
    shown = run(SMALL | {"--log": str(log)}).stdout
    assert log.read_text() == before
    assert f"auto over {found['best_fixed']}: {median:.3f}" in shown


def test_a_run_that_was_ended_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for count in (2, 3):
        done = run(SMALL | {"--log": str(log), "--seconds": "0"})
        assert done.exit_code == 0
        # There is no time left, but every run measures at least one heat.
        assert len(log.read_text().splitlines()) == count
        assert "not everything has been measured" in done.stderr


@pytest.mark.skipif(len(usable_cores()) < 2, reason="one core")
def test_two_emulated_devices_are_called_that() -> None:
    cores = {"--target-device": "cpu:0", "--draft-device": "cpu:1"}
    done = run(SMALL | {"--windows": "1", "--branches": "2", "--finals": "1"} | cores)
    assert "two emulated devices: target on core 0, draft on core 1" in done.stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [("--windows", ""), ("--windows", "1,two"), ("--branches", "0"), ("--exit-heads", "nowhere")],
)
def test_a_grid_that_is_none_is_refused(option: str, value: str) -> None:
    with pytest.raises(OptionError, match=f"{option} is '{value}'; write "):
        run({option: value})
