"""Heats: what they come to, and the file that a run goes on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirror_edge.apps.heats import Answered, Heat, Log, law, quartiles, ratios
from mirror_edge.errors import DataError, OptionError
from mirror_edge.stats import StepRecord

ABOUT = {"bundle": "a", "threads": [1, None]}


def answered(speed: float) -> Answered:
    return Answered(tokens=10, seconds=10 / speed, same=True, stepped=1.0, law=1.0)


def heat(number: int, **speeds: float) -> Heat:
    return Heat("grid", number, {name: answered(speed) for name, speed in speeds.items()})


def step(
    *, hit: bool | None, rollout: float = 0.0, fresh: float = 0.0, head: str = "exit"
) -> StepRecord:
    times = {"prefix": 0.01, "exit": 0.001, "suffix": 0.02, "rollout": rollout, "fresh": fresh}
    times["waited"] = fresh
    rest = dict.fromkeys(("began", "seconds", "hidden", "host"), 0.0)
    counts = dict.fromkeys(("proposed", "accepted", "committed", "depth", "roots"), 0)
    return StepRecord(
        mode="mirror",
        rank=None,
        hit=hit,
        busy={head: 0.001},
        sent=0,
        read=0,
        **times,
        **rest,
        **counts,
    )


def test_ratios_are_taken_within_a_heat() -> None:
    # The machine was twice as fast the second time: that is no difference between settings.
    heats = [heat(0, ar=10.0, sd=15.0), heat(1, ar=20.0, sd=30.0), heat(2, ar=20.0, mirror=1.0)]
    assert ratios(heats, "sd", "ar") == [pytest.approx(1.5)] * 2
    assert quartiles([3.0, 1.0, 2.0]) == (1.5, 2.0, 2.5)
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)


def test_the_law_has_the_longer_of_suffix_and_rollout_and_the_draft_after_a_miss() -> None:
    assert law([step(hit=True, rollout=0.03)]) == pytest.approx(0.041)
    assert law([step(hit=True, rollout=0.01)]) == pytest.approx(0.031)
    beside = "draft exit"
    assert law([step(hit=True, rollout=0.03, head=beside)]) == pytest.approx(0.041)
    assert law([step(hit=True, rollout=0.0195, head=beside)]) == pytest.approx(0.0305)
    assert law([step(hit=True, rollout=0.01, head=beside)]) == pytest.approx(0.030)
    assert law([step(hit=False, rollout=0.03), step(hit=True, fresh=0.005)]) == pytest.approx(0.067)
    # Behind a miss a record holds the rest of the dropped rollout: that step's own is not known.
    mixed = [step(hit=True, rollout=0.025), step(hit=True, rollout=0.09, fresh=0.005)]
    assert law(mixed) == pytest.approx(2 * 0.031 + 0.005 + 2 * 0.005)
    assert law([]) == 0.0


def test_a_run_goes_on_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    first = Log.open(file, ABOUT)
    first.add(heat(0, ar=10.0))
    first.add(Heat("final", 0, {"ar": answered(3.0)}))
    again = Log.open(file, ABOUT)
    assert again.heats == first.heats
    again.add(heat(1, ar=11.0))
    assert [one.number for one in Log.open(file, ABOUT).of("grid")] == [0, 1]
    assert len(file.read_text().splitlines()) == 4


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_last_line_that_was_cut_by_a_kill_is_measured_again(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = Log.open(file, ABOUT)
    for number in range(2):
        log.add(heat(number, ar=10.0))
    *whole, last = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole) + last[:kept])
    cut = Log.open(file, ABOUT)
    assert [one.number for one in cut.heats] == [0]
    cut.add(heat(2, ar=10.0))
    assert Log.open(file, ABOUT).heats == cut.heats


def test_a_broken_line_before_the_last_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    Log.open(file, ABOUT).add(heat(0, ar=10.0))
    about, whole = file.read_text().splitlines()
    file.write_text(f"{about}\n{whole[:30]}\n{whole}\n")
    with pytest.raises(DataError, match=r"log\.jsonl: holds no heats"):
        Log.open(file, ABOUT)


def test_the_heats_of_another_run_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    Log.open(file, ABOUT).add(heat(0, ar=10.0))
    with pytest.raises(OptionError, match=r"log\.jsonl: .* \(threads differ\)"):
        Log.open(file, ABOUT | {"threads": [2, None]})


@pytest.mark.parametrize("text", ["", "words", "words\n", json.dumps({"about": ABOUT}) + "\n{}\n"])
def test_a_file_that_holds_no_heats_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=r"log\.jsonl: holds no heats"):
        Log.open(file, ABOUT)
