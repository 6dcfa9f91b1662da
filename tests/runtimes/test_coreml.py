"""The Core ML runtime on the evaluator: whole answers of the demo pair, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge import bundle as bundles
from mirror_edge.devices import Device
from mirror_edge.errors import BundleError, DeviceError, OptionError
from mirror_edge.runtimes.coreml.runtime import CoreMLRuntime
from mirror_edge.runtimes.coreml.target import CoreMLTarget
from mirror_edge.trace import Trace

pytest.importorskip("torch")
pytest.importorskip("coremltools")

LENGTH = 32
PROMPTS = Path(__file__).parents[1] / "prompts.txt"
EVALUATED = {"target_device": "coreml:evaluator", "draft_device": "coreml:evaluator"}


@pytest.fixture(scope="module")
def model(coreml: Path) -> Iterator[mirror_edge.Model]:
    with mirror_edge.load(coreml, **EVALUATED) as model:
        yield model


@pytest.fixture
def target(model: mirror_edge.Model) -> Any:
    return model._pair.decoder.target


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_mirror_on_the_evaluator_gives_the_answers_of_onnx(
    temperature: float, model: mirror_edge.Model, demo: mirror_edge.Model, prompts: list[str]
) -> None:
    def answer(one: mirror_edge.Model, prompt: str) -> Any:
        return one.generate(
            [{"role": "user", "content": prompt}],
            max_new_tokens=LENGTH,
            sampling=Sampling(temperature=temperature, seed=3),
            speculation=Speculation(mode="mirror"),
        )

    both = ((prompt, answer(demo, prompt)) for prompt in prompts)
    long = list(islice((pair for pair in both if len(pair[1].tokens) == LENGTH), 5))
    assert len(long) == 5
    steps = []
    for prompt, expected in long:
        found = answer(model, prompt)
        assert found.tokens == expected.tokens
        assert not found.stats.draft_losses
        steps += found.stats.steps
    hits = sum(bool(step.hit) for step in steps)
    assert 0 < hits < len(steps) < 5 * LENGTH
    times = [[step.prefix, step.exit, step.suffix, step.rollout] for step in steps]
    assert np.all(np.sum(times, axis=0) > 0)


def test_compare_bundles_finds_no_difference_in_float32(
    coreml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mirror_edge.apps.compare_bundles import compare

    compare([bundles.demo(), coreml], PROMPTS, limit=2, new_tokens=12)
    rows = json.loads(capsys.readouterr().out)
    assert [row.pop("format") for row in rows] == ["onnx", "onnx", "coreml", "coreml"]
    assert [row.pop("first_difference_at") for row in rows] == 4 * [[None, None]]
    for row in rows:
        assert 0.0 < row["acceptance_per_token"] < 1.0
        del row["bundle"]
    assert rows[:2] == rows[2:]


def test_strict_answers_are_the_same_in_every_mode(model: mirror_edge.Model) -> None:
    def answer(mode: Any) -> tuple[int, ...]:
        asked = Speculation(mode=mode, window=5, strict=True)
        return model.generate("Once upon a time", max_new_tokens=12, speculation=asked).tokens

    assert answer("ar") == answer("sd") == answer("mirror")


def test_a_draft_in_a_child_process_gives_the_same_answer(
    coreml: Path, model: mirror_edge.Model
) -> None:
    asked = {"max_new_tokens": 8, "speculation": Speculation(mode="mirror")}
    with mirror_edge.load(coreml, **EVALUATED, draft_process=True) as apart:
        found = apart.generate("Once upon a time", **asked)
    assert found.tokens == model.generate("Once upon a time", **asked).tokens
    assert not found.stats.draft_losses
    assert sum(step.accepted for step in found.stats.steps) > 0


@pytest.mark.parametrize(("unit", "apart"), [("", True), ("ane", True), ("evaluator", False)])
def test_a_draft_on_an_apple_device_runs_in_a_child_process(unit: str, apart: bool) -> None:
    assert CoreMLRuntime().draft_process(Device("coreml", unit=unit)) is apart


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(4, 1000, length).tolist()


def test_overwritten_rows_leave_no_trace(target: CoreMLTarget) -> None:
    ids, other = text(20), text(8, seed=1)
    target.prefill(ids[:12], 0)
    target.prefix(ids[12:], 12, 0)
    fresh = target.suffix()
    for start, rows in ((12, 8), (15, 3)):
        target.prefix(other[:rows], start, 0)
        target.suffix()
    target.prefix(ids[12:], 12, 0)
    np.testing.assert_array_equal(target.suffix(), fresh)


def test_padding_changes_no_row(target: CoreMLTarget) -> None:
    ids = text(20)
    target.prefill(ids[:12], 0)
    target.prefix(ids[12:], 12, 0)
    wide = target.suffix()
    for count in range(1, 9):
        signal = target.prefix(ids[12 : 12 + count], 12, 4, width=8)
        padded = target.suffix()
        assert signal is not None
        assert signal.ids.shape == (count, 4)
        np.testing.assert_array_equal(padded, wide[:count])


def test_the_exit_head_returns_candidates_best_first(
    target: CoreMLTarget, demo: mirror_edge.Model
) -> None:
    ids = text(12)
    signals = []
    demo._pair.decoder.cached.clear()  # Its cache holds these rows from here on.
    for one in (target, demo._pair.decoder.target):
        one.prefill(ids[:8], 0)
        signals.append(one.prefix(ids[8:], 8, 6))
        assert one.prefix(ids[8:], 8, 0) is None
    ours, theirs = signals
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    with pytest.raises(OptionError, match=r"257 candidates per row are .* returns at most 256"):
        target.prefix(ids[8:], 8, 257)


@pytest.mark.parametrize("rows", [1, 4, 20])
def test_the_exit_head_returns_the_same_candidates_on_the_drafts_device(
    target: CoreMLTarget, coreml: Path, rows: int
) -> None:
    device = Device("coreml", unit="evaluator")
    head = CoreMLRuntime().open_exit(bundles.read(coreml), device, 1, Trace())
    ids = text(8 + rows)
    target.prefill(ids[:8], 0)
    own, other = target.prefix(ids[8:], 8, 6), head.signal(target.hidden(), 6)
    assert own is not None
    np.testing.assert_array_equal(other.ids, own.ids)
    np.testing.assert_allclose(other.logprobs, own.logprobs, atol=1e-5)


def test_the_end_of_the_context_can_be_reached(target: CoreMLTarget) -> None:
    last = target.context - 1
    ids = text(target.context)
    target.prefill(ids[: last - 3], 0)
    target.prefix(ids[last - 3 :], last - 3, 0)
    one = target.suffix()
    target.prefill(ids, 0)  # The last chunk is padded beyond the context.
    np.testing.assert_allclose(target.prefill(ids, 0), one[-1:], atol=2e-4)


@pytest.mark.parametrize("unit", ["gpu", "ane", "cpu", "all"])
def test_apple_devices_are_refused_on_other_systems(
    unit: str, coreml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    refused = rf"^device 'coreml:{unit}' needs macOS, and this is \w+; coreml:evaluator runs"
    with pytest.raises(DeviceError, match=refused):
        mirror_edge.load(coreml, target_device=f"coreml:{unit}", draft_device="coreml:evaluator")


def test_by_default_the_target_uses_the_gpu_and_the_draft_the_neural_engine(
    coreml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(DeviceError, match="device 'coreml:gpu' needs macOS"):
        mirror_edge.load(coreml)
    with pytest.raises(DeviceError, match="device 'coreml:ane' needs macOS"):
        mirror_edge.load(coreml, target_device="coreml:evaluator")


def test_an_unknown_unit_is_refused(coreml: Path) -> None:
    with pytest.raises(DeviceError, match="'coreml:npu'; choose one of coreml:gpu, "):
        mirror_edge.load(coreml, target_device="coreml:npu")


def test_a_device_for_another_format_is_refused(coreml: Path) -> None:
    with pytest.raises(DeviceError, match=r"device 'cpu' runs onnx graphs, .* are coreml; use "):
        mirror_edge.load(coreml, target_device="cpu")
    with pytest.raises(DeviceError, match=r"device 'coreml:evaluator' runs coreml graphs, .* onnx"):
        mirror_edge.load(**EVALUATED)


def test_threads_are_refused_for_core_ml(coreml: Path) -> None:
    with pytest.raises(
        OptionError, match="target_threads applies to the cpu device only; coreml:evaluator"
    ):
        mirror_edge.load(coreml, **EVALUATED, target_threads=2)


def test_a_changed_weight_byte_is_refused(coreml: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(coreml, tmp_path / "copy"))
    (file,) = (copy / "draft").rglob("weight.bin")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"^{file}: its SHA-256 is not the manifest's"):
        mirror_edge.load(copy, **EVALUATED)


def test_inspect_shows_the_programs(coreml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mirror_edge.apps.inspect import inspect_command

    inspect_command(coreml)
    shown = capsys.readouterr().out
    spec = bundles.read(coreml).manifest
    one, draft = spec.target.model, spec.draft
    assert draft is not None
    kept = f"{one.kv_heads}, {one.context + 128}, {one.head_size}]"
    for line in (
        "demo (coreml, schema 1)",
        "MB, iOS 18, macOS 15 and later",
        "fp32",
        "input_ids int32 [1, 1|2|4|8|16]",
        f"past_keys float32 [{spec.target.exit_layer}, {kept}",
        f"logits float32 [1, S, {one.vocabulary}]",
        "exit_ids int32 [1, S, 256]",
        f"attention_bias float32 [1, 1, 32, {draft.model.context + draft.branch_rows + 32}]",
    ):
        assert line in shown


def test_placement_needs_macos(coreml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mirror_edge.apps.inspect import inspect_command

    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(DeviceError, match="device 'coreml:gpu' needs macOS"):
        inspect_command(coreml, placement=True)
