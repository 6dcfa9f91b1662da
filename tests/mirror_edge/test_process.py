"""The draft in a child process: whatever becomes of it, the text stays, and the draft comes back.

Every child here is a real one, on the demo pair.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

import mirror_edge
from mirror_edge import Model, Sampling, Speculation
from mirror_edge import bundle as bundles
from mirror_edge.errors import DeviceError, OptionError
from mirror_edge.process import ProcessDrafter
from mirror_edge.sampling import Sampler

STORY = "Once upon a time"
MIRROR = Speculation(mode="mirror", window=3)
BACK = 5.0
"""Seconds in which a draft that was lost must be back, where no other work holds it up."""
PATIENCE = 30.0
"""Seconds in which it must be back at the latest."""


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with mirror_edge.load(target_threads=1, draft_threads=1, draft_process=True) as model:
        yield model


def child_of(model: Model) -> ProcessDrafter:
    drafter = model._pair.drafters["model"]
    assert isinstance(drafter, ProcessDrafter)
    return drafter


def until(true: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Wait until it is; how long that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.002)
    return time.monotonic() - began


class Returns(logging.Handler):
    """Hears how long a model's draft was away, each time it comes back."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._drafter = child_of(model)
        self.seconds: list[float] = []
        """Without those for which a busy machine had no core for the child."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("the draft is back"):
            assert isinstance(record.args, tuple)
            away = record.args[0]
            assert isinstance(away, float)
            self.seconds.append(away - stood_in_line(self._drafter.pid))


@contextmanager
def returns(model: Model) -> Iterator[list[float]]:
    """How long its draft was away, each time."""
    log, handler = logging.getLogger("mirror_edge"), Returns(model)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield handler.seconds
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def stood_in_line(pid: int) -> float:
    """Seconds for which a process was ready and had no core, as far as the system tells."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def is_alive(pid: int) -> bool:
    """Whether there is such a process; a zombie counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def alone(model: Model, sampling: Sampling, tokens: int = 200) -> tuple[int, ...]:
    return model.generate(
        STORY, max_new_tokens=tokens, sampling=sampling, speculation=Speculation(mode="ar")
    ).tokens


@pytest.mark.parametrize("mode", ["sd", "mirror"])
@pytest.mark.parametrize("seed", range(3))
def test_one_seed_one_text_with_the_draft_in_a_process(
    model: Model, demo: Model, mode: str, seed: int
) -> None:
    sampling = Sampling(
        0.8, top_k=40, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.2, seed=seed - 1
    )
    speculation = Speculation(mode=mode)  # type: ignore[arg-type]
    there, here = (
        m.generate(STORY, max_new_tokens=64, sampling=sampling, speculation=speculation)
        for m in (model, demo)
    )
    assert there.tokens == here.tokens == alone(demo, sampling, 64)
    assert not there.stats.draft_losses
    # The very same drafts, unless this machine was so busy that a step gave up on one.
    lapses = there.stats.draft_lapses + here.stats.draft_lapses
    accepted = [[step.accepted for step in m.stats.steps] for m in (there, here)]
    assert accepted[0] == accepted[1] or lapses


def test_the_spans_of_the_child_are_in_the_statistics(model: Model) -> None:
    figures = model.generate(STORY, max_new_tokens=64, speculation=MIRROR).stats.as_dict()
    assert figures["overlap_ratio"] > 0.0
    medians = figures["median_step_ms"]
    assert medians["rollout"] > 0.0
    # A fresh draft keeps the target waiting: were its runs not counted, all of it would be host.
    serial = model.generate(STORY, max_new_tokens=64, speculation=Speculation(mode="sd")).stats
    waited = sum(step.seconds - step.prefix - step.suffix for step in serial.steps)
    assert sum(step.host for step in serial.steps) < waited


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=5)], ids=["greedy", "drawn"])
def test_a_review_in_the_child_says_the_same(model: Model, demo: Model, sampling: Sampling) -> None:
    text = [*demo.tokenize(STORY), *alone(demo, sampling, 80)]
    sampler = Sampler(sampling, demo._pair.decoder.target.vocabulary)
    there, here = (m._pair.drafters["model"].review(text, 64, sampler) for m in (model, demo))
    assert there == here
    assert 0.3 < sum(there) / 64 < 1.0


def test_a_head_start_reaches_the_child(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a target whose prefix takes longer than the draft's way there and back."""
    target = model._pair.decoder.target
    prefix = target.prefix

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return prefix(*arguments, **options)

    monkeypatch.setattr(target, "prefix", slow)
    asked = Speculation(mode="mirror", window=3, head_start=True)
    kept = model.trace.keep()
    result = model.generate(STORY, max_new_tokens=48, speculation=asked)
    alone = model.generate(STORY, max_new_tokens=48, speculation=Speculation(mode="ar"))
    assert result.tokens == alone.tokens
    assert not result.stats.draft_losses
    early = [call for call in kept.calls if call.name == "head start"]
    drafted = [run for run in kept.runs if run.name == "draft"]
    assert early
    assert any(call.start < run.start and run.end < call.end for call in early for run in drafted)


def test_kill_9_at_twenty_random_moments_changes_no_text(model: Model) -> None:
    draw = random.Random(7)
    samplings = (Sampling(0.7, seed=seed) for seed in count())
    answers = ((sampling, alone(model, sampling)) for sampling in samplings)
    long = list(islice((answer for answer in answers if len(answer[1]) == 200), 10))
    with returns(model) as away:
        for sampling, expected in [*long, *long]:
            killed, fatal = child_of(model).pid, draw.randrange(180)
            tokens: list[int] = []
            answer = model.stream(STORY, max_new_tokens=200, sampling=sampling, speculation=MIRROR)
            for chunk in answer:
                if len(tokens) <= fatal < len(tokens) + len(chunk.tokens):
                    time.sleep(draw.uniform(0.0, 0.004))
                    os.kill(killed, signal.SIGKILL)
                tokens += chunk.tokens
            assert tuple(tokens) == expected
            assert list(chunk.stats.draft_losses) == [
                "DraftLostError: the draft's process was lost: it was killed by SIGKILL."
            ]
            until(lambda: child_of(model).ready)
            assert child_of(model).pid != killed
            assert not is_alive(killed)
        until(lambda: len(away) == 20)
    assert max(away) < BACK


def test_the_same_answer_gets_its_draft_back_each_time(model: Model) -> None:
    expected = alone(model, Sampling(), 240)
    tokens: list[int] = []
    losses = 0
    for chunk in model.stream(STORY, max_new_tokens=240, speculation=MIRROR):
        tokens += chunk.tokens
        if len(tokens) > 60 * (losses + 1) and losses < 3:
            losses += 1
            os.kill(child_of(model).pid, signal.SIGKILL)
            until(lambda: not child_of(model).ready)
            until(lambda: child_of(model).ready)
    assert tuple(tokens) == expected
    stats = chunk.stats
    assert (len(stats.draft_losses), stats.draft_restarts) == (3, 3)
    modes = "".join("m" if step.mode == "mirror" else "a" for step in stats.steps)
    spells = [spell for spell in modes.split("a") if spell]
    assert len(spells) == 4, modes
    assert all(any(step.hit for step in part) for part in parts_of(stats.steps)), (
        "a draft that is back prepares outcomes again"
    )


def parts_of(steps: list) -> list[list]:
    """The steps between those that the target took alone."""
    parts: list[list] = [[]]
    for step in steps:
        if step.mode == "mirror":
            parts[-1].append(step)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


Faults = Callable[..., None]


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Plan what the next children of device `faulty` do wrong: (fault, forward) for each."""
    plan = tmp_path / "plan.json"
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "faulty")
    monkeypatch.setenv("FAULTY_DRAFT", str(plan))

    def misbehave(*each: tuple[str, int]) -> None:
        plan.write_text(json.dumps(each))

    return misbehave


OPENING = 5
"""Forwards before the first call at most: two of a prefill, three of a rollout."""


@pytest.mark.parametrize(
    ("fault", "forward", "why"),
    [
        ("hang", 1, "it did not reply within"),
        ("hang", 40, "it did not reply within"),
        ("babble", 25, "invalid reply: bytes that are not a message"),
        ("fail", 30, "RuntimeError: the driver went away"),
        ("die", 1, "it was killed by SIGKILL"),
    ],
)
def test_a_draft_that_misbehaves_changes_no_text_and_is_replaced(
    faults: Faults, fault: str, forward: int, why: str
) -> None:
    faults((fault, OPENING + forward))
    with mirror_edge.load(target_threads=1, draft_device="faulty") as model:
        first, expected = child_of(model).pid, alone(model, Sampling())
        with returns(model) as away:
            result = model.generate(STORY, max_new_tokens=200, speculation=MIRROR)
            assert result.tokens == expected
            until(lambda: bool(away))
        assert max(away) < BACK
        assert child_of(model).ready
        assert child_of(model).pid != first
        assert not is_alive(first)
        losses = list(result.stats.draft_losses)
        # One that hangs may be found out after the end of an answer that did not wait for it.
        assert len(losses) == 1 or (fault == "hang" and result.stats.draft_lapses)
        assert all(why in loss for loss in losses)
        again = model.generate(STORY, max_new_tokens=200, speculation=MIRROR)
        assert again.tokens == expected
        assert not again.stats.draft_losses
        assert again.stats.as_dict()["hypothesis_hits"] > 0


def test_an_answer_that_lasts_hears_why_its_draft_hung_and_gets_it_back(faults: Faults) -> None:
    faults(("hang", OPENING + 30))
    with mirror_edge.load(target_threads=1, draft_device="faulty") as model:
        expected = alone(model, Sampling())
        tokens: list[int] = []
        for chunk in model.stream(STORY, max_new_tokens=200, speculation=MIRROR):
            tokens += chunk.tokens
            if len(tokens) > 100 and not chunk.stats.draft_losses:
                time.sleep(0.1)
            elif len(tokens) > 120 and not chunk.stats.draft_restarts:
                until(lambda: child_of(model).ready)
        assert tuple(tokens) == expected
        stats = chunk.stats
        assert (len(stats.draft_losses), stats.draft_restarts) == (1, 1)
        assert stats.draft_lapses, "the step that needed it gave up on it before it was given up"
        assert stats.steps[-1].mode == "mirror"


def test_random_ids_cost_speed_and_neither_text_nor_the_draft(faults: Faults) -> None:
    faults(("guess", OPENING))
    with mirror_edge.load(target_threads=1, draft_device="faulty") as model:
        for sampling in (Sampling(), Sampling(0.8, seed=4)):
            result = model.generate(
                STORY, max_new_tokens=100, sampling=sampling, speculation=MIRROR
            )
            assert result.tokens == alone(model, sampling, 100)
            assert not result.stats.draft_losses
            assert result.stats.as_dict()["acceptance_rate"] < 0.1


def test_a_draft_that_cannot_be_restarted_is_tried_again_later(
    faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    faults(("die", OPENING + 20), ("refuse", 0), ("die", 2), ("", -1))
    caplog.set_level(logging.INFO, "mirror_edge")
    with mirror_edge.load(target_threads=1, draft_device="faulty") as model:
        expected = alone(model, Sampling())
        assert model.generate(STORY, max_new_tokens=200, speculation=MIRROR).tokens == expected
        until(lambda: "is back" in caplog.text)
        for said in ("this device is on strike", "did not open: it was killed by SIGKILL"):
            assert said in caplog.text
        assert not model.generate(STORY, max_new_tokens=20, speculation=MIRROR).stats.draft_losses


def test_a_draft_whose_process_the_system_refuses_is_started_again_later(
    faults: Faults, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults(("die", OPENING + 20), ("", -1))
    caplog.set_level(logging.INFO, "mirror_edge")
    start, left = subprocess.Popen, 2

    def refused(*of: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise BlockingIOError("no more processes")
        return start(*of, **more)

    with mirror_edge.load(target_threads=1, draft_device="faulty") as model:
        monkeypatch.setattr(subprocess, "Popen", refused)
        sockets = len(list(Path("/proc/self/fd").iterdir()))
        expected = alone(model, Sampling())
        assert model.generate(STORY, max_new_tokens=200, speculation=MIRROR).tokens == expected
        until(lambda: "is back" in caplog.text)
        assert caplog.text.count("the draft's process did not start: no more processes") == 2
        assert len(list(Path("/proc/self/fd").iterdir())) <= sockets
        assert not model.generate(STORY, max_new_tokens=20, speculation=MIRROR).stats.draft_losses


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system confines nothing")
def test_a_target_that_may_not_use_its_cores_leaves_no_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    children = children_of_this()
    with pytest.raises(DeviceError, match="cannot use core 0"):
        mirror_edge.load(target_device="cpu:0", draft_process=True)
    until(lambda: children_of_this() == children)


def children_of_this() -> set[int]:
    found = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {int(line.split()[0]) for line in found.splitlines() if "draft_server" in line}


@pytest.mark.parametrize("fault", ["refuse", "die"])
def test_a_draft_that_does_not_open_is_refused_with_its_reason(faults: Faults, fault: str) -> None:
    faults((fault, 0))
    said = {"refuse": "faulty: this device is on strike", "die": "killed by SIGKILL"}[fault]
    with pytest.raises(DeviceError, match=said):
        mirror_edge.load(draft_device="faulty")


def test_the_device_decides_unless_told_otherwise(faults: Faults) -> None:
    faults()
    with mirror_edge.load(draft_device="faulty", draft_process=False) as model:
        assert not isinstance(model._pair.drafters["model"], ProcessDrafter)
    with mirror_edge.load() as model:
        assert not isinstance(model._pair.drafters["model"], ProcessDrafter)


@pytest.mark.parametrize(
    ("option", "value"), [("draft_process", True), ("draft_threads", 1), ("draft_device", "cpu:0")]
)
def test_options_for_a_draft_that_is_not_there_are_refused(
    option: str, value: Any, demo_copy: Path
) -> None:
    spec = bundles.read(demo_copy).manifest
    shutil.rmtree(demo_copy / "draft")
    bundles.write_manifest(demo_copy, "no draft", spec.target, None)
    with pytest.raises(OptionError, match=f"{option} is {value!r}, but .* has no draft"):
        mirror_edge.load(demo_copy, **{option: value})
    with mirror_edge.load(demo_copy) as model:
        asked = Speculation(drafter="model")
        with pytest.raises(OptionError, match=r"drafter is 'model', but .* has no draft"):
            model.generate(STORY, speculation=asked)


def test_closing_ends_the_child_and_leaves_no_zombie() -> None:
    with mirror_edge.load(draft_process=True) as model:
        child = child_of(model)
        model.generate(STORY, max_new_tokens=8)
        assert is_alive(child.pid)
    assert not is_alive(child.pid)
    model.close()


def test_ctrl_c_is_not_for_the_child(model: Model) -> None:
    until(lambda: child_of(model).ready)
    child = child_of(model).pid
    assert os.getpgid(child) != os.getpgid(0)
    os.kill(child, signal.SIGINT)
    result = model.generate(STORY, max_new_tokens=40, speculation=MIRROR)
    assert not result.stats.draft_losses
    assert child_of(model).pid == child


PARENT = """
import sys, mirror_edge
with mirror_edge.load(draft_device=sys.argv[1], draft_process=True) as model:
    for chunk in model.stream("Once upon a time", max_new_tokens=900):
        print(chunk.text, flush=True)
    print("done", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("plan", [[], [("hang", OPENING + 1)]], ids=["idle", "hung"])
def test_the_child_ends_when_its_parent_is_killed(
    faults: Faults, plan: list[tuple[str, int]]
) -> None:
    faults(*plan)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, "faulty"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        parent.stdout.readline()
        parent.kill()
        began = time.monotonic()
        # The child has the same standard error: it ends with the last of the two.
        parent.stderr.read()
        assert time.monotonic() - began < PATIENCE


def test_what_a_driver_prints_is_no_part_of_the_answer(faults: Faults) -> None:
    faults(("chatter", OPENING + 3))
    command = Path(sys.executable).parent / "mirror-edge"
    done = subprocess.run(
        [command, "generate", STORY, "--raw", "--json", "--max-new-tokens", "30",
         "--draft-device", "faulty"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
    )  # fmt: skip
    stats = json.loads(done.stdout)["stats"]
    assert (stats["draft_losses"], stats["draft_restarts"], stats["draft_lapses"]) == ([], 0, 0)
    assert b"driver" not in done.stdout


def test_a_deadline_grows_with_the_rows_and_with_each_failure_in_a_row(model: Model) -> None:
    until(lambda: child_of(model).ready)
    drafter = child_of(model)
    child = drafter._child
    assert child is not None
    deadlines = [drafter._deadline(child, rows) for rows in (1, 100, 10_000)]
    assert 2.0 < deadlines[0] < deadlines[1] < deadlines[2]
    drafter._failures = 3
    assert drafter._deadline(child, 1) == pytest.approx(deadlines[0] + 14.0)
    model.generate(STORY, max_new_tokens=20, speculation=MIRROR)
    assert drafter._deadline(child, 1) < 2.1, "a good answer clears the record"
