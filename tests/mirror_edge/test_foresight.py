"""How many streams are used: the number that was fastest, found anew when it changes."""

from __future__ import annotations

import numpy as np
import pytest

from mirror_edge.foresight import Foresight


def used(foresight: Foresight, seconds: list[float], rollouts: int, branches: int = 8) -> list[int]:
    """What it chooses while n streams take `seconds[n]`, give or take a fifth."""
    draw, chosen = np.random.default_rng(0), []
    for _ in range(rollouts):
        streams = foresight.choose(branches, len(seconds) - 1)
        foresight.learn(branches, streams, seconds[streams] * draw.uniform(0.9, 1.1))
        chosen.append(streams)
    return chosen


@pytest.mark.parametrize("seconds", [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 1.0, 3.0]])
def test_the_fastest_number_is_used_once_each_was_tried(seconds: list[float]) -> None:
    best, chosen = seconds.index(min(seconds)), used(Foresight(2), seconds, 2000)
    assert set(chosen[9:30]) == {best}
    assert chosen.count(best) > 0.97 * len(chosen)


def test_a_change_is_noticed_and_trying_grows_rarer() -> None:
    foresight = Foresight(1)
    assert used(foresight, [1.0, 2.0], 200)[-1] == 0
    assert used(foresight, [1.0, 0.5], 200)[-1] == 1
    chosen = used(foresight, [1.0, 0.5], 5000)
    assert 0 < chosen[1000:].count(0) <= 3 * 6


def test_what_is_much_too_slow_tells_of_all_that_is_wider() -> None:
    foresight = Foresight(3)
    assert set(used(foresight, [1.0, 2.0, 3.0, 9.0], 60)) == {0, 1}
    # Not for ever: it is another text by and by.
    assert set(used(foresight, [1.0, 0.9, 0.8, 0.7], 200)[-20:]) == {3}


def test_few_branches_and_many_are_told_apart() -> None:
    foresight = Foresight(2)
    used(foresight, [1.0, 2.0, 3.0], 9, branches=8)
    used(foresight, [3.0, 2.0, 1.0], 9, branches=1)
    assert (foresight.choose(8, 2), foresight.choose(1, 2)) == (0, 2)
    assert foresight.choose(9, 2) == 0


def test_no_more_are_chosen_than_there_is_room_for() -> None:
    foresight = Foresight(3)
    assert set(used(foresight, [3.0, 2.0], 40)) == {0, 1}
    assert set(used(foresight, [4.0, 3.0, 2.0, 1.0], 40)[-20:]) == {3}
