"""Measured costs that are kept from one start to the next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mirror_edge
from mirror_edge import kept, tuning
from mirror_edge.costs import Costs, Curve
from mirror_edge.experience import Experience

KEY = {"bundle": "abc", "devices": "cpu cpu"}


class Measuring:
    """Counts how often it is asked; every time something else comes out."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, *_: object) -> Costs:
        self.asked += 1
        curve = Curve((1, 8), (1e-3 * self.asked, 0.1))
        return Costs(curve, curve, curve, curve, 1.25)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measuring:
    monkeypatch.setenv("MIRROR_EDGE_CACHE", str(tmp_path / "cache"))
    return Measuring()


def test_costs_are_measured_once_for_all_that_they_depend_on(measured: Measuring) -> None:
    first = tuning._costs(KEY, measured)
    assert tuning._costs(KEY, measured) == first
    assert tuning._costs(KEY | {"devices": "cpu gpu"}, measured) != first
    assert measured.asked == 2


def test_costs_whose_list_is_damaged_are_measured_anew(measured: Measuring) -> None:
    tuning._costs(KEY, measured)
    for file in kept.folder().glob("costs/*/entry.json"):
        file.write_text("[]")
    tuning._costs(KEY, measured)
    assert measured.asked == 2


@pytest.mark.parametrize("damage", ["", '{"prefix": 1}', "not JSON"])
def test_damaged_costs_are_measured_anew(measured: Measuring, damage: str) -> None:
    tuning._costs(KEY, measured)
    for file in kept.folder().glob("costs/*/value.json"):
        file.write_text(damage)
    again = tuning._costs(KEY, measured)
    assert measured.asked == 2
    assert tuning._costs(KEY, measured) == again


def test_costs_that_another_version_has_kept_are_measured_anew(measured: Measuring) -> None:
    kept.write("costs", KEY, {"prefix": 1, "suffix": {}})
    assert tuning._costs(KEY, measured) == tuning._costs(KEY, measured)
    assert measured.asked == 1


def test_cleared_costs_are_measured_anew(measured: Measuring) -> None:
    tuning._costs(KEY, measured)
    assert kept.clear() > 0
    tuning._costs(KEY, measured)
    assert measured.asked == 2


def test_costs_that_cannot_be_kept_are_measured_all_the_same(measured: Measuring) -> None:
    kept.folder().write_text("no folder")
    assert tuning._costs(KEY, measured).beside == 1.25
    assert measured.asked == 1


def test_what_auto_has_learnt_is_there_at_the_next_start(
    measured: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "measure", measured)

    def learnt(threads: int = 1) -> Experience:
        with mirror_edge.load(target_threads=threads, draft_threads=1) as model:
            model.generate("Once upon a time", max_new_tokens=24)
            before = model._tuning._controllers["model"][1].experience.as_dict()
        key = model._tuning._controllers["model"][0]
        assert tuning._experience(key).as_dict() == before
        return tuning._experience(key)

    first = learnt()
    again = learnt()
    noted = [sum(len(host.learnt) for host in each.host.values()) for each in (first, again)]
    assert 0 < noted[0] < noted[1]
    # Other threads are another matter, and damage is no experience.
    with mirror_edge.load(target_threads=2, draft_threads=1) as model:
        model.costs()
        found = model._tuning._controllers["model"][1].experience
        assert found.as_dict() == Experience().as_dict()
    for file in kept.folder().glob("experience/*/value.json"):
        file.write_text("{}")
    with mirror_edge.load(target_threads=1, draft_threads=1) as model:
        model.costs()
        found = model._tuning._controllers["model"][1].experience
        assert found.as_dict() == Experience().as_dict()


def test_an_experience_survives_json_and_nothing_else_becomes_one() -> None:
    known = Experience()
    known.acceptance.add(1, 4)
    known.look_up[1].add(1.0)
    for factor in (1.5, 1.6, 1.7):
        known.pace.now.add(factor)
    known.ranks[3] += 7.0
    again = Experience.of(json.loads(json.dumps(known.as_dict())))
    assert again.as_dict() == known.as_dict()
    assert again.acceptance.mean == known.acceptance.mean
    assert again.pace.now.value == known.pace.now.value == 1.5
    assert again.hit_rates(np.array([4])) == known.hit_rates(np.array([4]))
    for raw in ({}, {"ranks": [1.0], "means": {}}, {**known.as_dict(), "means": {}}):
        with pytest.raises((KeyError, ValueError)):
            Experience.of(raw)


def test_a_second_start_does_not_measure_again_unless_its_threads_differ(
    measured: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "measure", measured)
    found = []
    for threads in (1, 1, 2):
        with mirror_edge.load(target_threads=threads, draft_threads=1) as model:
            found.append(model.costs())
    assert found[0] == found[1] != found[2]
    assert measured.asked == 2
