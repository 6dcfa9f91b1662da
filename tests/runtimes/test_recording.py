"""Recordings: reading, writing, and simulated models that agree at the same positions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mirror_edge.errors import DataError
from mirror_edge.runtimes.recording import Recording

RECORDING = Recording({"bundle": "made up"}, [True, True, False, True, False], [0, 3, None, 1, 2])


def test_a_written_recording_can_be_read(tmp_path: Path) -> None:
    RECORDING.write(tmp_path / "answer.json")
    assert Recording.read(tmp_path / "answer.json") == RECORDING


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a recording"),
        ('{"recording": 2}', "is not a recording of version 1"),
        ('{"recording": 1, "draft": [1, 0, 1]}', "draft must be a list of true and false"),
        ('{"recording": 1, "draft": [true], "exit": ["a"]}', "exit must be a list of ranks"),
        ('{"recording": 1, "draft": [true], "exit": [0, 1]}', "draft has 1 values and exit 2"),
    ],
)
def test_an_invalid_recording_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (path := tmp_path / "answer.json").write_text(content)
    with pytest.raises(DataError) as refused:
        Recording.read(path)
    assert f"{path}: {message}" in str(refused.value)
    with pytest.raises(DataError, match="cannot be read"):
        Recording.read(tmp_path / "nothing.json")


def test_the_models_of_a_recording_agree_where_they_did() -> None:
    script = RECORDING.script()
    states = np.array([script.start], dtype=np.uint64)
    for predicted, rank in zip(RECORDING.draft, RECORDING.exit, strict=True):
        truth = script.target(states)
        assert (script.draft(states) == truth).item() is predicted
        ids, _ = script.exit(states, 8)
        assert len(set(ids[0].tolist())) == 8
        found = np.flatnonzero(ids[0] == truth)
        assert found.tolist() == ([] if rank is None else [rank])
        off = script.after(states, (truth + 1) % script.vocabulary)
        assert off[0] >= len(RECORDING.draft)
        states = script.after(states, truth)


def test_a_recording_is_plain_json(tmp_path: Path) -> None:
    RECORDING.write(tmp_path / "answer.json")
    assert json.loads((tmp_path / "answer.json").read_text())["exit"] == [0, 3, None, 1, 2]
