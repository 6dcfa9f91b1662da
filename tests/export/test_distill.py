"""`distill` on a language of a few dozen words: it learns, goes on after a kill, and refuses."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import SHAPE as TINY
from tiny import Checkpoint, make_tokenizer, streaming_draft, write_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mirror_edge.errors import DataError, ExportError, OptionError
from mirror_edge.export import DraftShape, Recipe, acceptance, distill
from mirror_edge.export.distillation import Status
from mirror_edge.export.drafts import decoder, fresh, plain
from mirror_edge.export.losses import text_loss
from mirror_edge.export.schedule import Budget, Schedule
from mirror_edge.export.streams import STREAMS_FILE
from mirror_edge.export.training import Stage, Stream, train

WORDS = {
    "who": ["the fox", "an owl", "my old cat", "a tall bear", "the queen", "our dog"],
    "does": ["eats", "paints", "hides", "counts", "finds", "forgets"],
    "what": ["red apples", "small boats", "warm bread", "paper stars", "blue stones"],
    "when": ["at night", "in spring", "before noon", "after school", "every day"],
}
SHAPE = DraftShape(layers=1, hidden=32, heads=2, kv_heads=1)


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS[part]) for part in ("who", "does", "what", "when")) + ". "


@pytest.fixture
def small_exam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and shorter held-out answers, where the figures do not matter."""
    monkeypatch.setattr(acceptance, "_PROMPTS", 12)
    monkeypatch.setattr(acceptance, "_ANSWER", 24)


quick = pytest.mark.usefixtures("small_exam")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines of all three kinds."""
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    with (folder / "data.jsonl").open("w") as file:
        for number in range(1200):
            first, second = sentence(draw), "".join(sentence(draw) for _ in range(4))
            said: list[Any] = [
                {"messages": [{"role": "user", "content": first}]},
                {"m": [first, second]},
                {"text": first + second},
            ]
            said[0]["messages"].append({"role": "assistant", "content": second})
            file.write(json.dumps(said[number % 3]) + "\n")
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that has learnt the language, in a few seconds."""
    folder = tmp_path_factory.mktemp("target")
    draw = random.Random(1)
    text = "".join(sentence(draw) for _ in range(3000))
    tokenizer = make_tokenizer(text, 320)
    torch.manual_seed(0)
    config = {"num_hidden_layers": 2, "intermediate_size": 128, "initializer_range": 0.02}
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, **config, "tie_word_embeddings": True}))
    stream = np.array(tokenizer.encode(text).ids, np.uint16)
    schedule = Schedule(
        Budget(tokens=150_000), batch=16, length=64, long_length=64, learning_rate=1e-2
    )
    train(model, [Stage("text", text_loss(model), Stream(stream))], schedule)
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def untrained(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    config = LlamaConfig.from_pretrained(target)
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = 32, 1, 64
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 16
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((target / name).read_bytes())
    return folder


def recipe(**changes: Any) -> Recipe:
    settings = {"tokens": 1, "batch": 16, "length": 64, "learning_rate": 1e-2, "device": "cpu"}
    return Recipe(**{**settings, **changes})


def test_a_drafts_acceptance_rises_from_under_0_3_to_over_0_6(
    target: Path, untrained: Path, data: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    before = distill(target, untrained, [data], tmp_path / "before", recipe=recipe())
    after = distill(target, untrained, [data], tmp_path / "after", recipe=recipe(tokens=150_000))
    assert before.acceptance.greedy < 0.3
    assert after.acceptance.greedy > 0.6
    assert after.acceptance.shared > 2 * before.acceptance.shared
    assert after.acceptance.shared > after.acceptance.independent
    assert after.streams["0"].forwards < 6
    assert time.monotonic() - began < 300


@quick
def test_the_report_and_the_targets_tokenizer_lie_in_the_drafts_folder(
    target: Path, data: Path, tmp_path: Path
) -> None:
    made = distill(target, SHAPE, [data], tmp_path / "draft", recipe=recipe(tokens=20_000))
    assert {path.name for path in tmp_path.iterdir()} == {"draft"}
    report = json.loads((tmp_path / "draft" / "distill.json").read_text())
    assert report["run"]["tokens"] == made.run.tokens >= 20_000
    assert report["acceptance"]["greedy"] == made.acceptance.greedy
    assert report["volume"]["documents"] == 1080
    assert report["volume"]["own_outputs"] > 0
    assert any("tokens of text are few" in note for note in report["notes"])
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "draft" / name).is_file()
    assert (target / "tokenizer.json").read_bytes() == (
        tmp_path / "draft" / "tokenizer.json"
    ).read_bytes()
    streamed = streaming_draft(tmp_path / "draft")
    assert (streamed.streams, streamed.layers) == (2, 1)


@quick
def test_a_plain_draft_has_no_streams(target: Path, data: Path, tmp_path: Path) -> None:
    stages = set()
    made = distill(
        target,
        SHAPE,
        [data],
        tmp_path / "draft",
        recipe=recipe(tokens=10_000, streams=0),
        on_progress=lambda status: stages.add(status.stage),
    )
    assert made.streams == {}
    assert not (tmp_path / "draft" / STREAMS_FILE).exists()
    assert {"Reading text", "text", "distillation", "Measuring"} <= stages


@quick
def test_lossless_training_leaves_the_drafts_own_weights_and_logits(
    target: Path, untrained: Path, data: Path, tmp_path: Path
) -> None:
    made = distill(
        target, untrained, [data], tmp_path / "draft", recipe=recipe(tokens=40_000, lossless=True)
    )
    before, after = (load_file(f / "model.safetensors") for f in (untrained, tmp_path / "draft"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ids = torch.arange(40)[None]
    first, second = (
        AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        for folder in (untrained, tmp_path / "draft")
    )
    assert torch.equal(first, second)
    once = distill(target, untrained, [data], tmp_path / "once", recipe=recipe(lossless=True))
    assert made.acceptance == once.acceptance
    assert sum(made.streams["1"].right) > sum(once.streams["1"].right)


@quick
def test_a_drafts_own_streams_are_gone_on_with(target: Path, data: Path, tmp_path: Path) -> None:
    first = distill(target, SHAPE, [data], tmp_path / "first", recipe=recipe(tokens=20_000))
    again = distill(
        target, tmp_path / "first", [data], tmp_path / "again", recipe=recipe(learning_rate=1e-9)
    )
    assert again.streams == first.streams
    other = distill(target, tmp_path / "first", [data], tmp_path / "x", recipe=recipe(streams=1))
    assert len(other.streams["0"].right) == 1
    assert any("had 2 streams" in note for note in other.notes)


def command(*options: Any) -> list[str]:
    return [sys.executable, "-P", "-m", "mirror_edge.apps.cli", "distill", *map(str, options)]


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(
    target: Path, data: Path, tmp_path: Path
) -> None:
    options = ["--target", target, "--data", data, "--draft-layers", 1, "--draft-hidden", 32]
    options += ["--tokens", 80_000, "--batch", 16, "--length", 64, "--device", "cpu"]
    options += ["--learning-rate", 1e-2, "--checkpoint-seconds", 0.5]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    checkpoint = tmp_path / "killed.checkpoint"
    process = subprocess.Popen(command(*options, "-o", killed))
    deadline = time.monotonic() + 240
    while not checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not killed.exists()

    again = subprocess.run(
        command(*options, "-o", killed), capture_output=True, text=True, check=True
    )
    assert f"was resumed from {checkpoint}" in again.stdout.replace("\n", "")
    assert not checkpoint.exists()
    subprocess.run(command(*options, "-o", whole), check=True)
    one, other = (json.loads((f / "distill.json").read_text()) for f in (killed, whole))
    assert one["run"]["tokens"] == other["run"]["tokens"]
    assert one["run"]["steps"] == other["run"]["steps"]
    assert one["losses"]["draft"] == pytest.approx(other["losses"]["draft"], rel=0.05)
    assert one["acceptance"]["greedy"] == pytest.approx(other["acceptance"]["greedy"], abs=0.05)


@quick
def test_the_checkpoint_of_another_run_is_refused(
    target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mirror_edge.export.distillation.save", lambda *_, **__: (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(Exception, match="draft"):
        distill(target, SHAPE, [data], tmp_path / "draft", recipe=recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["draft.checkpoint"]
    with pytest.raises(OptionError, match=r"draft\.checkpoint: .* another seed \(0, not 1\)"):
        distill(target, SHAPE, [data], tmp_path / "draft", recipe=recipe(seed=1))
    (tmp_path / "draft.checkpoint").write_bytes(b"cut off")
    with pytest.raises(OptionError, match="Delete it to start over"):
        distill(target, SHAPE, [data], tmp_path / "draft", recipe=recipe())


def test_unusable_data_is_refused_by_file_and_line_before_anything_is_written(
    target: Path, data: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": 5}\n')
    out = tmp_path / "draft"
    ran = subprocess.run(
        command(
            "--target", target, "--data", bad, "--draft-layers", 1, "--draft-hidden", 32, "-o", out
        ),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert f"error: {bad}:2: needs" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]
    with pytest.raises(DataError, match=r"bad\.jsonl:2: needs"):
        distill(target, SHAPE, [data], out, held_out=[bad], recipe=recipe())


@pytest.mark.parametrize(
    ("changes", "draft", "message"),
    [
        ({"length": 200}, SHAPE, "--length 200: must be at most 128"),
        ({"lossless": True}, SHAPE, "--lossless: keeps a draft's own predictions"),
        ({"stream_layers": 2}, SHAPE, "--stream-layers 2: must be 1 to 1"),
        ({"device": "mps"}, SHAPE, "--device mps: torch finds none here"),
        ({}, "/nowhere/at/all", "--draft /nowhere/at/all: there is no such folder"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(
    target: Path, data: Path, tmp_path: Path, changes: dict[str, Any], draft: Any, message: str
) -> None:
    if changes.get("device") == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(OptionError, match=message):
        distill(target, draft, [data], tmp_path / "draft", recipe=recipe(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_draft_of_another_tokenizer_is_refused(
    target: Path, data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="different tokenizers"):
        distill(target, checkpoint("Llama"), [data], tmp_path / "draft", recipe=recipe())


def test_what_is_there_is_not_written_over(target: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="already exists"):
        distill(target, SHAPE, [data], tmp_path, recipe=recipe())


@quick
def test_nor_is_what_was_created_meanwhile_and_the_training_is_kept(
    target: Path, data: Path, tmp_path: Path
) -> None:
    output, settings = tmp_path / "draft", recipe(tokens=20_000)

    def create(status: Status) -> None:
        if status.stage == "Measuring":
            output.touch()

    with pytest.raises(OptionError, match=r"was created while .*draft\.checkpoint keeps"):
        distill(target, SHAPE, [data], output, recipe=settings, on_progress=create)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft", "draft.checkpoint"]
    assert output.read_bytes() == b""
    output.unlink()
    stages: list[tuple[str, float]] = []
    made = distill(
        target,
        SHAPE,
        [data],
        output,
        recipe=settings,
        on_progress=lambda status: stages.append((status.stage, status.share)),
    )
    assert made.run.tokens >= 20_000
    assert all(share >= 1.0 for stage, share in stages if stage in {"text", "distillation"})
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"minutes": 1.0, "tokens": 5}, "Give the budget in minutes or in tokens"),
        ({"minutes": 0.0}, "minutes is 0.0; it must be above 0"),
        ({"streams": 0, "lossless": True}, "streams must be 1 or more"),
        ({"own_outputs": 1.5}, "own_outputs is 1.5; it must be from 0 to 1"),
    ],
)
def test_a_recipe_out_of_range_is_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Recipe(**numbers)


def test_the_shape_of_a_fresh_draft_is_filled_in_and_checked() -> None:
    assert DraftShape(2, 256) == DraftShape(2, 256, heads=8, kv_heads=4, intermediate=512)
    assert DraftShape(2, 1024).heads == 16
    with pytest.raises(OptionError, match="multiple of 16"):
        DraftShape(2, 100)
    with pytest.raises(OptionError, match="4 heads cannot share 3"):
        DraftShape(2, 128, heads=4, kv_heads=3)


def test_a_fresh_draft_knows_which_tokens_are_alike_to_the_target() -> None:
    shape = DraftShape(layers=1, hidden=32)
    target = decoder(DraftShape(layers=1, hidden=64), 96, 64, {})
    table = target.get_input_embeddings().weight
    with torch.no_grad():
        table.copy_(torch.randn(96, 16) @ torch.randn(16, 64))
    made = plain(fresh(shape, target, Recipe(streams=0))).get_input_embeddings().weight
    assert made.shape == (96, 32)
    assert torch.allclose(made @ made.T, table @ table.T, atol=1e-2)
