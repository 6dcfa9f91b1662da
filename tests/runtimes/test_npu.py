"""The draft on an NPU's emulator: agreement, placement, and the time of a second start."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mirror_edge
from mirror_edge import Speculation, kept
from mirror_edge import bundle as bundles
from mirror_edge.bundle import Bundle
from mirror_edge.errors import DeviceError
from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.fixed_draft import FixedDraft
from mirror_edge.runtimes.onnx.session import Setup

SetupMaker = Callable[[], Setup]


@pytest.fixture(scope="module")
def bundle(pair: Path) -> Bundle:
    return bundles.read(pair)


@pytest.fixture
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_EDGE_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def on_the_npu(bundle: Bundle, on_qnn: SetupMaker) -> FixedDraft:
    return FixedDraft(bundle, on_qnn())


def logits_after(graph: FixedDraft | OnnxDraft, ids: list[int], prompt: int) -> np.ndarray:
    """The graph's logits for every token after the prompt, [len(ids) - prompt, vocabulary]."""
    tokens, places = np.array(ids), np.arange(len(ids))
    graph.forward(tokens[: prompt - 1], places[: prompt - 1], 0, None, np.array([prompt - 2]))
    rows = np.arange(len(ids) - prompt)
    fed = slice(prompt - 1, -1)
    return graph.forward(tokens[fed], places[fed], prompt - 1, None, rows).copy()


def test_it_agrees_with_the_target_as_often_as_on_the_cpu(
    bundle: Bundle,
    on_the_npu: FixedDraft,
    on_cpu: SetupMaker,
    demo: mirror_edge.Model,
    prompts: list[str],
) -> None:
    """On the target's own text, where every agreement is an acceptance."""
    here = OnnxDraft(bundle, on_cpu())
    agreed, off, count = np.zeros(2), 0.0, 0
    for prompt in prompts[::4]:
        asked = demo.tokenize([{"role": "user", "content": prompt}])
        alone = Speculation(mode="ar")
        answer = demo.generate(
            [{"role": "user", "content": prompt}], max_new_tokens=96, speculation=alone
        )
        if len(answer.tokens) < 2:
            continue
        if count > 300:
            break
        ids = [*asked, *answer.tokens]
        found, wanted = (logits_after(graph, ids, len(asked)) for graph in (on_the_npu, here))
        off = max(off, float(np.abs(found - wanted).max() / wanted.std()))
        agreed += [(rows.argmax(axis=-1) == answer.tokens).sum() for rows in (found, wanted)]
        count += len(answer.tokens)
    assert count > 200
    assert agreed[1] / count > 0.3
    assert abs(agreed[0] - agreed[1]) / count < 0.02
    assert off < 0.05


def test_every_node_is_on_the_npu_and_the_rest_is_refused(
    bundle: Bundle, pair: Path, on_qnn: SetupMaker
) -> None:
    setup = on_qnn()
    FixedDraft(bundle, setup)
    assert set(setup.trace.placed["draft"]) == {"QNNExecutionProvider"}
    spec = bundle.manifest.draft
    assert spec is not None
    assert spec.fixed is not None
    free = replace(spec, fixed=replace(spec.fixed, prefill=spec.graph, rollout=spec.graph))
    with pytest.raises(DeviceError, match=r"would run|refused the graph"):
        FixedDraft(Bundle(pair, replace(bundle.manifest, draft=free)), on_qnn())
    with pytest.raises(DeviceError, match="supports fixed shapes only, which suits a draft"):
        mirror_edge.load(pair, target_device="qnn", draft_device="cpu")
    with mirror_edge.load(pair, target_device="cpu", draft_device="qnn") as model:
        asked = Speculation(mode="mirror", exit_head="draft")
        with pytest.raises(
            DeviceError, match="'qnn': supports fixed shapes only, and the exit head"
        ):
            model.generate("Hello", speculation=asked)


@pytest.mark.usefixtures("_empty_cache")
def test_a_second_start_is_five_times_faster_and_a_damaged_entry_is_rebuilt(
    bundle: Bundle, on_qnn: SetupMaker, caplog: pytest.LogCaptureFixture
) -> None:
    def opened() -> float:
        setup = replace(on_qnn(), bundle="known")
        began = time.perf_counter()
        draft = FixedDraft(bundle, setup)
        seconds = time.perf_counter() - began
        assert set(setup.trace.placed["draft"]) == {"QNNExecutionProvider"}
        draft.forward(np.arange(4, 9), np.arange(5), 0, None, np.array([4]))
        return seconds

    cold, warm = opened(), min(opened() for _ in range(3))
    assert warm < cold / 5
    blobs = list((kept.folder() / "compiled").glob("*/*.bin"))
    assert len(blobs) == 2
    for blob in blobs:
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 1
        blob.write_bytes(content)
    with caplog.at_level(logging.WARNING, "mirror_edge"):
        assert opened() > 2 * warm
    assert caplog.text.count("was changed; rebuilding it") == len(blobs)
