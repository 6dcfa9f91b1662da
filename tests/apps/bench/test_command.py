"""`mirror-edge bench`, run as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

COMMAND = str(Path(sys.executable).parent / "mirror-edge")
QUESTIONS = [
    {"question_id": 7, "category": "coding", "turns": ["Name a colour.", "Name another one."]},
    {"question_id": 9, "category": "translation", "turns": ["Translate: Guten Morgen."]},
    {"question_id": 3, "category": "rag", "turns": ["Text: It rained. Question: Did it rain?"]},
    {"question_id": 4, "category": "riddles", "turns": ["What has hands but cannot clap?"]},
]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "bench", *words], capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "question.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS), encoding="utf-8")
    return path


def test_a_bench_measures_every_mode_on_every_question(questions: Path, tmp_path: Path) -> None:
    figures, html = tmp_path / "bench.json", tmp_path / "bench.html"
    done = run(
        "--questions", str(questions), "--repeat", "2", "--max-new-tokens", "16",
        "--json", str(figures), "--html", str(html),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Measuring" in done.stderr
    for said in ("speed-up over ar", "multi-turn conversation", "riddles", "overlap", "energy: "):
        assert said in done.stdout
    found = json.loads(figures.read_text())
    modes = ["ar", "sd", "mirror", "auto"]
    assert list(found["categories"]) == ["mt_bench", "translation", "rag", "riddles"]
    for part in (found["overall"], *found["categories"].values()):
        assert list(part) == modes
        for one in part.values():
            assert one["tokens_per_second"] > 0.0
            assert one["mean_accepted_tokens"] >= 1.0
            assert one["same_text"] == 1.0
        assert part["ar"]["speedup"] == 1.0
    overall = found["overall"]
    assert overall["ar"]["answers"] == 8
    # Five turns, twice.
    assert overall["ar"]["tokens"] == overall["mirror"]["tokens"] <= 10 * 16
    assert overall["sd"]["mean_accepted_tokens"] == pytest.approx(
        overall["mirror"]["mean_accepted_tokens"], rel=0.1
    )
    assert overall["mirror"]["rollout_forwards_per_step"] > 0.5
    assert overall["ar"]["hit_rate"] is None
    assert overall["ar"]["acceptance_by_position"] == []
    assert found["left_out"] == []
    assert found["interrupted"] is False
    assert found["width_curve"]["rows"][0] == 1
    ElementTree.fromstring(html.read_text(encoding="utf-8").partition("\n")[2])
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.html"}


def test_questions_that_are_too_long_are_left_out_and_named(tmp_path: Path) -> None:
    path, figures = tmp_path / "question.jsonl", tmp_path / "bench.json"
    long = {"question_id": 1, "category": "qa", "turns": ["word " * 2000]}
    path.write_text(json.dumps(long) + "\n" + json.dumps(QUESTIONS[1]) + "\n")
    words = ("--questions", str(path), "--repeat", "1", "--modes", "sd", "--max-new-tokens", "8")
    done = run(*words, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    assert "too long for the context: lines 1" in " ".join(done.stdout.split())
    found = json.loads(figures.read_text())
    assert found["left_out"] == [1]
    assert list(found["overall"]) == ["ar", "sd"]
    path.write_text(json.dumps(long) + "\n")
    done = run(*words)
    assert done.returncode == 2
    assert "no question fits into the context of 1,024 tokens" in " ".join(done.stderr.split())


def drain(terminal: int, into: list[str]) -> None:
    """Read what is shown up to the end: a terminal that nobody reads holds its writer up."""
    while True:
        try:
            into.append(os.read(terminal, 4096).decode(errors="replace"))
        except OSError:
            return


def test_ctrl_c_leaves_the_rounds_that_were_complete(questions: Path, tmp_path: Path) -> None:
    figures = tmp_path / "bench.json"
    own, theirs = pty.openpty()
    words = ("--questions", str(questions), "--repeat", "500", "--modes", "ar,mirror")
    done = subprocess.Popen(
        [COMMAND, "bench", *words, "--max-new-tokens", "8", "--json", str(figures)],
        stdout=subprocess.PIPE, stderr=theirs, text=True, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown: list[str] = []
    reader = threading.Thread(target=drain, args=(own, shown), daemon=True)
    reader.start()
    until = time.monotonic() + 120.0
    while "Measuring" not in "".join(shown):
        assert time.monotonic() < until, shown
        time.sleep(0.1)
    time.sleep(3.0)
    done.send_signal(signal.SIGINT)
    said = done.communicate(timeout=120)[0]
    reader.join(10.0)
    os.close(own)
    assert done.returncode == 130
    assert "stopped early" in said
    found = json.loads(figures.read_text())
    assert found["interrupted"] is True
    assert found["overall"]["ar"]["answers"] == found["overall"]["mirror"]["answers"] > 0
    assert found["overall"]["ar"]["answers"] < 2000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["--questions", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--modes", "ar,fast"], "mode is 'fast'"),
        (["--json", "no/where.json"], "no/where.json: cannot be written"),
        (["--html", "/"], "/: cannot be written (it is a folder)"),
        (["--peer", "vllm=x"], "--peer is 'vllm'; it must be one of"),
        (["--peer", "transformers", "--temperature", "1"], "drop --temperature"),
        (["--branches", "some"], "--branches is 'some'"),
        (["--repeat", "0"], "Invalid value for '--repeat'"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert "Measuring" not in done.stderr


def test_a_broken_line_is_refused_before_anything_runs(questions: Path, tmp_path: Path) -> None:
    broken, figures = tmp_path / "broken.jsonl", tmp_path / "bench.json"
    broken.write_text(questions.read_text() + '{"question_id": 5, "category": "qa"}\n')
    done = run("--questions", str(broken), "--json", str(figures))
    assert done.returncode == 2
    assert "broken.jsonl, line 5: turns is missing" in " ".join(done.stderr.split())
    assert "Warming up" not in done.stderr
    assert not figures.exists()
