"""The embedded API on the demo pair."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirror_edge
from mirror_edge import Message, Model, Sampling, Speculation
from mirror_edge.errors import BusyError, ClosedError, ContextError, DeviceError, OptionError
from mirror_edge.sampling import Sampler

OPENING = "Once upon a time"
"""Its answer goes on for hundreds of tokens."""
STORY: list[Message] = [{"role": "user", "content": "Tell me a story about a fox."}]


def test_streamed_chunks_join_to_the_whole_answer(demo: Model) -> None:
    sampling = Sampling(temperature=0.8, seed=2)
    whole = demo.generate(STORY, max_new_tokens=48, sampling=sampling)
    chunks = list(demo.stream(STORY, max_new_tokens=48, sampling=sampling))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.tokens) == whole.tokens
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason


def test_the_async_stream_says_the_same(demo: Model) -> None:
    async def collect() -> str:
        return "".join([chunk.text async for chunk in demo.astream(STORY, max_new_tokens=48)])

    assert asyncio.run(collect()) == demo.generate(STORY, max_new_tokens=48).text


def test_the_plain_calls_work_beside_a_running_loop(demo: Model) -> None:
    async def notebook() -> tuple[str, str]:
        streamed = "".join(chunk.text for chunk in demo.stream(STORY, max_new_tokens=24))
        return demo.generate(STORY, max_new_tokens=24).text, streamed

    whole = demo.generate(STORY, max_new_tokens=24).text
    assert asyncio.run(notebook()) == (whole, whole)


def test_an_abandoned_stream_leaves_the_model_usable(demo: Model) -> None:
    whole = demo.generate(OPENING, max_new_tokens=40)
    for many in range(1, 6):
        stream = demo.stream(OPENING, max_new_tokens=40)
        for _ in range(many):
            next(stream)
        stream.close()
        assert demo.generate(OPENING, max_new_tokens=40).tokens == whole.tokens


def test_a_cancelled_answer_leaves_the_model_usable(demo: Model) -> None:
    whole = demo.generate(OPENING, max_new_tokens=40)

    assert len(demo.generate(OPENING, max_new_tokens=400).tokens) == 400

    async def cancelled(seconds: float) -> None:
        async def consume() -> None:
            async for _ in demo.astream(OPENING, max_new_tokens=400):
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for moment in range(8):
        asyncio.run(cancelled(0.0007 * moment))
        assert demo.generate(OPENING, max_new_tokens=40).tokens == whole.tokens


def test_a_second_answer_meanwhile_is_refused(demo: Model) -> None:
    stream = demo.stream(STORY, max_new_tokens=8)
    next(stream)
    with pytest.raises(BusyError, match="already generating an answer"):
        demo.generate(STORY, max_new_tokens=8)
    stream.close()


def test_a_second_turn_prefills_only_what_is_new(demo: Model) -> None:
    first = demo.generate(STORY, max_new_tokens=24)
    then: list[Message] = [
        *STORY,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And then?"},
    ]
    second = demo.generate(then, max_new_tokens=8)
    shared = demo.tokenize(STORY)
    assert second.stats.prompt_tokens > len(shared)
    assert second.stats.prefilled_tokens < second.stats.prompt_tokens - len(shared) + 1
    again = demo.generate(then, max_new_tokens=8)
    assert again.stats.prefilled_tokens == 1
    assert again.tokens == second.tokens


def test_a_stop_string_ends_the_answer_before_it(demo: Model) -> None:
    raw = "Once upon a time"
    whole = demo.generate(raw, max_new_tokens=60)
    stop = whole.text[10:13]
    result = demo.generate(raw, max_new_tokens=60, stop=[stop])
    assert result.text == whole.text[: whole.text.index(stop)]
    assert result.finish_reason == "stop"


def test_the_answer_ends_at_the_wanted_length_and_at_the_context(demo: Model) -> None:
    result = demo.generate("Once upon a time", max_new_tokens=1)
    assert (len(result.tokens), result.finish_reason) == (1, "length")
    long = "Once upon a time " * 300
    while len(demo.tokenize(long)) > demo.context - 30:
        long = long[: len(long) - 17]
    # Hot enough that the end of sequence is hardly ever drawn before the context is full.
    full = demo.generate(long, sampling=Sampling(temperature=3.0, seed=1))
    assert full.finish_reason == "length"
    assert full.stats.prompt_tokens + len(full.tokens) == demo.context


def test_stats_hold_what_a_caller_counts_on(demo: Model) -> None:
    figures = demo.generate(
        STORY, max_new_tokens=48, speculation=Speculation(mode="mirror")
    ).stats.as_dict()
    for name in (
        "steps",
        "tokens_per_step",
        "draft_tokens_proposed",
        "draft_tokens_accepted",
        "acceptance_rate",
        "hypothesis_hits",
        "hypothesis_misses",
        "overlap_ratio",
        "prompt_tokens",
        "time_to_first_token_s",
        "tokens_per_second",
    ):
        assert figures[name] is not None, name
    assert figures["hypothesis_hits"] + figures["hypothesis_misses"] == figures["steps"]
    assert 0.0 <= figures["overlap_ratio"] <= 1.0


def test_auto_plans_every_step_and_says_the_same(demo: Model) -> None:
    result = demo.generate(STORY, max_new_tokens=64)
    alone = demo.generate(STORY, max_new_tokens=64, speculation=Speculation(mode="ar"))
    assert (result.mode, alone.mode) == ("auto", "ar")
    assert result.tokens == alone.tokens
    assert sum(result.stats.as_dict()["steps_by_mode"].values()) == len(result.stats.steps)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "said"),
    [
        ("", {}, ContextError, "prompt is empty"),
        ("word " * 3000, {}, ContextError, "the context 1,024"),
        ("hello", {"max_new_tokens": 0}, OptionError, "max_new_tokens is 0"),
        ("hello", {"max_new_tokens": 2.5}, OptionError, "must be a whole number"),
        ("hello", {"sampling": {"temperature": 1}}, OptionError, "it must be a Sampling"),
        ("hello", {"speculation": "sd"}, OptionError, "it must be a Speculation"),
        ("hello", {"stop": [""]}, OptionError, "stop"),
        ("hello", {"stop": 5}, OptionError, "stop is 5"),
        ("hello", {"speculation": Speculation(window=1024)}, OptionError, "must be below 1024"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    demo: Model, prompt: str, options: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        demo.generate(prompt, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["tpu", "cpu:99", "cpu:x"])
def test_an_unknown_device_is_refused_by_name(device: str) -> None:
    with pytest.raises(DeviceError, match=device):
        mirror_edge.load(target_device=device)


def test_pinned_devices_answer_the_same(demo: Model) -> None:
    with mirror_edge.load(target_device="cpu:0", draft_device="cpu:0") as pinned:
        assert pinned.generate(STORY, max_new_tokens=16).tokens == (
            demo.generate(STORY, max_new_tokens=16).tokens
        )


@pytest.mark.parametrize("process", [False, True])
def test_an_exit_head_on_the_drafts_device_answers_the_same(demo: Model, process: bool) -> None:
    alone = demo.generate("Hello there", max_new_tokens=40, speculation=Speculation(mode="ar"))
    asked = Speculation(mode="mirror", exit_head="draft")
    with mirror_edge.load(target_threads=1, draft_threads=1, draft_process=process) as model:
        result = model.generate("Hello there", max_new_tokens=40, speculation=asked)
        runs = result.stats.steps[-1].busy
    assert result.tokens == alone.tokens
    assert result.stats.as_dict()["hypothesis_hits"] > 0
    assert {"draft exit", "prefix"} <= set(runs)
    assert "exit" not in runs


def test_a_stop_string_cuts_the_same_tokens_in_every_mode(demo: Model) -> None:
    whole = demo.generate(STORY, max_new_tokens=60).text
    results = [
        demo.generate(
            STORY, max_new_tokens=60, stop=[whole[12:15]], speculation=Speculation(mode=mode)
        )
        for mode in ("ar", "sd", "mirror")
    ]
    assert len({result.tokens for result in results}) == 1
    assert all(len(r.tokens) == r.stats.generated_tokens for r in results)


def test_unknown_options_are_refused_by_name(demo: Model) -> None:
    with pytest.raises(TypeError, match="max_tokens"):
        demo.generate(STORY, max_tokens=3)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="template variables need messages"):
        demo.generate("text", template={"thinking": True})
    with pytest.raises(OptionError, match="it must be a mapping"):
        demo.generate(STORY, template="thinking")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="template variable 1 must have a string as its name"):
        demo.generate(STORY, template={1: 2})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match="'messages' is reserved"):
        demo.generate(STORY, template={"messages": []})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"target_threads": 0}, "target_threads is 0; it must be 1 or more"),
        ({"draft_threads": "2"}, "draft_threads is '2'; it must be a whole number"),
        ({"target_device": None}, "target_device is None; it must be a string"),
        ({"draft_process": "yes"}, "draft_process is 'yes'; it must be True or False"),
    ],
)
def test_a_model_is_not_loaded_with_what_cannot_be_honoured(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        mirror_edge.load(**wrong)


def test_a_strict_answer_reads_the_whole_prompt_anew(demo: Model) -> None:
    for _ in range(2):
        strict = demo.generate(STORY, max_new_tokens=4, speculation=Speculation(strict=True))
        assert strict.stats.prefilled_tokens == strict.stats.prompt_tokens


def test_a_closed_model_refuses_and_closes_again_in_peace() -> None:
    model = mirror_edge.load()
    left = model.stream(STORY, max_new_tokens=400)
    next(left)
    model.close()
    model.close()
    with pytest.raises(ClosedError):
        model.generate(STORY)
    with pytest.raises(ClosedError):
        list(left)


def test_an_answer_that_was_asked_for_before_the_model_was_closed_is_refused() -> None:
    model = mirror_edge.load()
    waiting = model.stream(STORY)
    model.close()
    with pytest.raises(ClosedError):
        next(waiting)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_was_forked_off_is_refused_and_may_close(demo: Model) -> None:
    child = os.fork()
    if child == 0:
        try:
            demo.generate(STORY, max_new_tokens=2)
        except ClosedError as error:
            demo.close()
            os._exit(0 if "loaded in another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert demo.generate(STORY, max_new_tokens=2).tokens


def test_a_seed_of_numpy_says_what_the_plain_one_says(demo: Model) -> None:
    said = [
        demo.generate(STORY, max_new_tokens=8, sampling=Sampling(temperature=1.0, seed=seed)).text
        for seed in (3, np.int64(3))
    ]
    assert said[0] == said[1]


def test_the_pair_is_measured_once_and_the_user_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_EDGE_CACHE", str(tmp_path))
    heard: list[str] = []
    for _ in range(2):
        with mirror_edge.load(on_progress=heard.append) as model:
            model.generate(STORY, max_new_tokens=2)
            model.generate(STORY, max_new_tokens=2)
    assert heard == ["Measuring this pair on this machine (once)."]


def test_a_model_that_is_dropped_unclosed_leaves_no_threads() -> None:
    before = threading.active_count()
    model = mirror_edge.load()
    model.generate("Hello", max_new_tokens=2)
    del model
    gc.collect()
    until = time.monotonic() + 10.0
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_answers_leave_no_noise_behind(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Sampler]] = []

    def sampler(*of: Any) -> Sampler:
        one = Sampler(*of)
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr("mirror_edge.request.Sampler", sampler)
    gc.disable()
    try:
        for seed in range(6):
            speculation = Speculation(mode=("ar", "sd", "mirror")[seed % 3])
            sampling = Sampling(temperature=1.0, seed=seed)
            demo.generate(STORY, max_new_tokens=16, sampling=sampling, speculation=speculation)
        demo.generate(STORY, max_new_tokens=4)
        until = time.monotonic() + 10.0  # A lane may still be at work on what nobody wants.
        while any(ref() is not None for ref in made[:-1]) and time.monotonic() < until:
            time.sleep(0.01)
        assert not any(ref() is not None for ref in made[:-1])
    finally:
        gc.enable()


def test_onnx_runtime_reports_nothing(tmp_path: Path) -> None:
    hushed = ("CI", "ORT_DISABLE_TELEMETRY", "MIRROR_EDGE_CACHE", "XDG_CACHE_HOME")
    home = {name: value for name, value in os.environ.items() if name not in hushed}
    program = "import mirror_edge\nwith mirror_edge.load() as m: m.generate('Hi', max_new_tokens=4)"
    subprocess.run(
        [sys.executable, "-P", "-c", program], env={**home, "HOME": str(tmp_path)}, check=True
    )
    # Where it does, it keeps the device's name and what is still to be sent there.
    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_closing_ends_the_lanes() -> None:
    before = threading.active_count()
    with mirror_edge.load() as model:
        assert threading.active_count() == before + 2
        model.generate("Hello", max_new_tokens=2)
    assert threading.active_count() == before


def test_a_token_that_the_model_does_not_know_is_refused(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = demo.bundle.manifest.target.model.vocabulary
    monkeypatch.setattr(demo, "tokenize", lambda *_: [5, beyond])
    with pytest.raises(
        ContextError, match=f"contains token {beyond}, .* vocabulary has 4,096 tokens"
    ):
        demo.generate("Hello")
