"""The comparison of numbers of threads."""

from __future__ import annotations

import json

import pytest

from mirror_edge.apps.threads import threads
from mirror_edge.errors import OptionError


def test_every_number_of_threads_answers_in_every_mode(capsys: pytest.CaptureFixture[str]) -> None:
    small = {"modes": "ar,sd", "prompts": 1, "new_tokens": 12, "repeat": 2}
    threads(threads="1+1,2+1", **small, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["heats"] == 2
    assert list(found["modes"]) == ["ar", "sd"]
    for by_threads in found["modes"].values():
        assert list(by_threads) == ["1+1", "2+1"]
        assert by_threads["1+1"]["over_first"] == [1.0, 1.0, 1.0]
        assert all(one["tokens_per_second"] > 0 for one in by_threads.values())
    threads(threads="1+1", **small)
    assert "2 heats" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["2", "two+one", "+1", "1+1,"])
def test_numbers_that_are_none_are_refused(asked: str) -> None:
    with pytest.raises(OptionError, match="write target\\+draft"):
        threads(threads=asked)
