"""`mirror-edge simulate` and `mirror-edge trace`, run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mirror_edge.runtimes.profile import read, shipped, write
from mirror_edge.runtimes.recording import Recording

COMMAND = str(Path(sys.executable).parent / "mirror-edge")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_shipped_profiles_are_listed() -> None:
    assert set(json.loads(run("simulate", "--json").stdout)) == set(shipped())
    for name in shipped():
        assert name in run("simulate").stdout


def test_a_profile_becomes_a_table_of_modes_and_sweeps_and_a_timeline(tmp_path: Path) -> None:
    trace, html = tmp_path / "lanes.json", tmp_path / "lanes.html"
    words = ("simulate", "snapdragon-8-elite", "--new-tokens", "24", "--coverage", "0.9")
    shown = run(*words, "--trace", str(trace), "--html", str(html))
    assert shown.returncode == 0, shown.stderr
    assert "simulated, not measured" in shown.stdout
    for word in ("mirror", "auto", "window", "candidates", "branches", "published", "assumed"):
        assert word in shown.stdout
    for line in shown.stdout.splitlines():
        assert "…" not in line
    assert json.loads(trace.read_text())["otherData"]["title"].endswith(", simulated")
    ElementTree.fromstring(html.read_text().partition("\n")[2])

    found = json.loads((first := run(*words, "--json")).stdout)
    assert first.stdout == run(*words, "--json").stdout
    assert found["simulated"] is True
    assert found["settings"]["coverage"] == 0.9
    assert next(iter(found["modes"])) == "ar"
    assert {name: len(rows) for name, rows in found["sweeps"].items()} == {
        "window": 11,
        "candidates": 6,
        "branches": 8,
    }
    mirror = found["modes"]["mirror"]
    parts = sum(mirror[part] for part in ("prefix", "exit", "suffix", "draft", "host"))
    assert parts == pytest.approx(mirror["step"])


def test_a_recording_takes_the_place_of_a_stated_agreement(tmp_path: Path) -> None:
    always = Recording({}, [True] * 60, [0] * 60)
    always.write(tmp_path / "always.json")
    words = ("simulate", "lunar-lake", "--window", "3", "--branches", "all", "--json")
    found = json.loads(run(*words, "--recording", str(tmp_path / "always.json")).stdout)
    # Whole windows but for the end of the text, and every outcome was prepared for.
    assert found["modes"]["mirror"]["tokens_per_step"] > 3.5
    assert found["modes"]["mirror"]["hit_rate"] > 0.9


def test_a_profile_may_state_a_short_coverage(tmp_path: Path) -> None:
    profile = read("lunar-lake")
    short = replace(profile.text, coverage=(0.5, 0.9))
    write(replace(profile, text=short), tmp_path / "mine.toml")
    words = ("simulate", str(tmp_path / "mine.toml"), "--new-tokens", "24", "--json")
    assert json.loads(run(*words).stdout)["settings"]["coverage"] == 0.9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["my-machine"], "my-machine: there is no such profile or file"),
        (["lunar-lake", "--agreement", "2"], "Invalid value for '--agreement'"),
        (["lunar-lake", "--branches", "some"], "--branches is 'some'"),
        (["lunar-lake", "--recording", "nowhere.json"], "nowhere.json: cannot be read"),
        (["lunar-lake", "--recording", "a.json", "--agreement", "1"], "drop --agreement"),
        (
            ["lunar-lake", "--new-tokens", "8", "--trace", "no/where.json"],
            "no/where.json: cannot be written",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(words: list[str], said: str) -> None:
    done = run("simulate", *words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_real_answer_is_traced(tmp_path: Path) -> None:
    trace, html = tmp_path / "lanes.json", tmp_path / "lanes.html"
    words = ("trace", "Tell me a story.", "--mode", "mirror", "--max-new-tokens", "12")
    done = run(*words, "-o", str(trace), "--html", str(html))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("[mode mirror, ")
    events = json.loads(trace.read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {"prefix", "exit", "suffix", "rollout", "forward", "exit signal"} <= names
    assert names & {"hit", "miss"}
    ElementTree.fromstring(html.read_text().partition("\n")[2])
    assert not [path for path in tmp_path.iterdir() if path not in (trace, html)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hello"], "nothing to write; give -o FILE, --html FILE or both"),
        (["a", "b", "c", "-o", "t.json"], "there are 3 arguments"),
        (["hello", "-o", "t.json", "--mode", "fast"], "mode is 'fast'"),
        (["hello", "-o", "no/where.json"], "no/where.json: cannot be written"),
    ],
)
def test_what_cannot_be_traced_is_refused(words: list[str], said: str) -> None:
    done = run("trace", *words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
