"""The ONNX Runtime target and draft: caches, windows, widths."""

from __future__ import annotations

import gc
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirror_edge
from mirror_edge import Sampling
from mirror_edge import bundle as bundles
from mirror_edge.devices import Device
from mirror_edge.errors import DeviceError
from mirror_edge.hypotheses import Root
from mirror_edge.protocols import StoppedError
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.onnx.cache import InPlaceCache
from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.fixed_draft import FixedDraft
from mirror_edge.runtimes.onnx.memory import HostMemory
from mirror_edge.runtimes.onnx.providers import CPU
from mirror_edge.runtimes.onnx.runtime import cpu
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.runtimes.onnx.target import OnnxTarget
from mirror_edge.sampling import Sampler
from mirror_edge.trace import Trace


def on_the_cpu() -> Setup:
    return Setup(CPU.place(Device("cpu")), threads=1, cores=(), trace=Trace())


CLOSE = {"atol": 2e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def bundle() -> bundles.Bundle:
    return bundles.read(bundles.demo())


@pytest.fixture
def target(bundle: bundles.Bundle) -> OnnxTarget:
    return OnnxTarget(bundle, on_the_cpu())


@pytest.fixture
def draft(bundle: bundles.Bundle) -> OnnxDraft:
    return OnnxDraft(bundle, on_the_cpu())


def text(length: int, vocabulary: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(4, vocabulary, length).tolist()


def test_a_window_gives_the_logits_of_single_steps(target: OnnxTarget) -> None:
    ids = text(40, target.vocabulary)
    target.prefill(ids[:30], 0)
    single = []
    for place in range(30, 40):
        target.prefix(ids[place : place + 1], place, 0)
        single.append(target.suffix()[0].copy())
    target.prefix(ids[30:], 30, 0)
    np.testing.assert_allclose(target.suffix(), np.stack(single), **CLOSE)


def test_chunks_and_growing_buffers_change_nothing(target: OnnxTarget) -> None:
    ids = text(700, target.vocabulary)
    whole = target.prefill(ids, 0).copy()
    for start in range(0, 700, 123):
        chunked = target.prefill(ids[start : start + 123], start)
    np.testing.assert_allclose(chunked, whole, **CLOSE)


def test_an_outgrown_cache_is_released(target: OnnxTarget) -> None:
    ids = text(700, target.vocabulary)
    for rows in (40, 50, 60):
        target.prefill(ids[:rows], 0)
    cache = target._prefix
    assert isinstance(cache, InPlaceCache)
    outgrown = [weakref.ref(buffer) for buffer in cache._buffers.values()]
    target.prefill(ids, 0)
    gc.collect()
    assert not any(buffer() is not None for buffer in outgrown)


@pytest.mark.parametrize("refused", [1, 2, 3, 5])
def test_a_cache_that_cannot_grow_now_may_grow_later(
    bundle: bundles.Bundle, target: OnnxTarget, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = text(700, target.vocabulary)
    short = target.prefill(ids[:500], 0).copy()
    double, calls = HostMemory.double, itertools.count(1)

    def refuse_one(memory: HostMemory, cache: Any) -> Any:
        if next(calls) == refused:
            raise MemoryError("no more")
        return double(memory, cache)

    monkeypatch.setattr(HostMemory, "double", refuse_one)
    with pytest.raises(DeviceError, match=r"no memory for a KV cache of 1,024 rows \(no more\)"):
        target.prefill(ids, 0)
    np.testing.assert_array_equal(target.prefill(ids[:500], 0), short)
    whole = target.prefill(ids, 0).copy()
    np.testing.assert_array_equal(OnnxTarget(bundle, on_the_cpu()).prefill(ids, 0), whole)


def test_overwritten_rows_leave_no_trace(target: OnnxTarget) -> None:
    ids, other = text(20, target.vocabulary), text(8, target.vocabulary, seed=1)
    target.prefill(ids[:12], 0)
    target.prefix(ids[12:], 12, 0)
    fresh = target.suffix().copy()
    target.prefix(other, 12, 0)
    target.suffix()
    target.prefix(other[:3], 15, 0)
    target.suffix()
    target.prefix(ids[12:], 12, 0)
    np.testing.assert_array_equal(target.suffix(), fresh)


def test_padding_to_a_width_changes_no_row_and_fixes_their_arithmetic(target: OnnxTarget) -> None:
    ids = text(20, target.vocabulary)
    target.prefill(ids[:12], 0)
    target.prefix(ids[12:], 12, 0)
    wide = target.suffix().copy()
    for count in range(1, 9):
        signal = target.prefix(ids[12 : 12 + count], 12, 4, width=8)
        padded = target.suffix()
        assert padded.shape == (count, target.vocabulary)
        assert signal is not None
        assert signal.ids.shape == (count, 4)
        np.testing.assert_array_equal(padded, wide[:count])


def test_the_exit_head_returns_candidates_best_first(target: OnnxTarget) -> None:
    ids = text(12, target.vocabulary)
    target.prefill(ids[:8], 0)
    signal = target.prefix(ids[8:], 8, 6)
    assert signal is not None
    assert (np.diff(signal.logprobs, axis=-1) <= 0).all()
    assert (np.exp(signal.logprobs).sum(axis=-1) <= 1.0 + 1e-5).all()
    assert all(len(set(row)) == 6 for row in signal.ids.tolist())
    assert target.prefix(ids[8:], 8, 0) is None


def test_the_exit_head_returns_the_same_candidates_on_another_device(
    target: OnnxTarget, bundle: bundles.Bundle
) -> None:
    device, trace = Device("cpu"), Trace()
    head = cpu().open_exit(bundle, device, 1, trace)
    ids = text(20, target.vocabulary)
    target.prefill(ids[:8], 0)
    for rows, width in ((1, 0), (12, 0), (3, 8)):
        own = target.prefix(ids[8 : 8 + rows], 8, 6, width)
        hidden = target.hidden()
        assert hidden.shape == (rows, bundle.manifest.target.model.hidden)
        target.prefix(ids[:4], 8, 0)  # `hidden` must be a copy.
        other = head.signal(hidden, 6)
        assert own is not None
        np.testing.assert_array_equal(other.ids, own.ids)
        np.testing.assert_allclose(other.logprobs, own.logprobs, atol=1e-5)
    assert {run.name for run in trace.runs} == {"draft exit"}
    head.close()


def test_tree_rows_give_the_logits_of_their_paths_run_alone(draft: OnnxDraft) -> None:
    shared, paths = text(10, draft.vocabulary), [text(3, draft.vocabulary, s) for s in (1, 2, 3)]
    alone = []
    for path in paths:
        ids = np.array(shared + path)
        logits = draft.forward(ids, np.arange(13), 0, None, np.arange(10, 13))
        alone.append(logits.copy())
    draft.forward(np.array(shared), np.arange(10), 0, None, np.array([9]))
    for step in range(3):
        fed = np.array([path[step] for path in paths])
        hidden = np.zeros((3, 10 + 3 * (step + 1)), dtype=np.bool_)
        hidden[:, 10:] = np.tile(~np.eye(3, dtype=np.bool_), (1, step + 1))
        start = 10 + 3 * step
        logits = draft.forward(fed, np.full(3, 10 + step), start, hidden, np.arange(3))
        np.testing.assert_allclose(logits, np.stack([a[step] for a in alone]), **CLOSE)


def test_a_stopped_forward_leaves_the_earlier_rows_unchanged(draft: OnnxDraft) -> None:
    ids = np.array(text(900, draft.vocabulary))
    places = np.arange(900)
    last = np.array([0])
    draft.forward(ids[:20], places[:20], 0, None, np.array([19]))
    wanted = draft.forward(ids[20:21], places[20:21], 20, None, last).copy()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):  # A run can be stopped only after a long one.
            long = pool.submit(draft.forward, ids[20:], places[20:], 20, None, np.array([879]))
            while not long.done():
                draft.stop()
            if long.exception() is not None:
                break
    assert isinstance(long.exception(), StoppedError)
    draft.stop()  # No effect: nothing is running.
    np.testing.assert_allclose(
        draft.forward(ids[20:21], places[20:21], 20, None, last), wanted, **CLOSE
    )


def test_a_path_continues_after_its_rows_are_moved(draft: OnnxDraft) -> None:
    ids = text(14, draft.vocabulary)
    straight = draft.forward(np.array(ids), np.arange(14), 0, None, np.array([13])).copy()
    draft.forward(np.array(ids[:10]), np.arange(10), 0, None, np.array([9]))
    # Two interleaved branches: the path in slots 11 and 13, another branch in 10 and 12.
    mixed = np.array([7, ids[10], 8, ids[11]])
    hidden = np.zeros((4, 14), dtype=np.bool_)
    hidden[:, 10:] = [[0, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0]]
    draft.forward(mixed, np.array([10, 10, 11, 11]), 10, hidden, np.array([3]))
    draft.move([11, 13], 10)
    logits = draft.forward(np.array(ids[12:]), np.arange(12, 14), 12, None, np.array([1]))
    np.testing.assert_allclose(logits, straight, **CLOSE)


def test_branches_may_use_slots_beyond_the_context(draft: OnnxDraft) -> None:
    assert draft.slots > draft.context
    ids = text(draft.context - 1, draft.vocabulary)
    draft.forward(np.array(ids), np.arange(len(ids)), 0, None, np.array([0]))
    rows = draft.slots - len(ids)
    hidden = np.zeros((rows, draft.slots), dtype=np.bool_)
    hidden[:, len(ids) :] = ~np.eye(rows, dtype=np.bool_)
    tokens, positions = np.full(rows, 9), np.full(rows, len(ids))
    logits = draft.forward(tokens, positions, len(ids), hidden, np.array([0, rows - 1]))
    np.testing.assert_allclose(logits[0], logits[1], **CLOSE)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_draft_at_fixed_shapes_gives_exactly_the_same_tokens(
    pair: Path, demo: mirror_edge.Model, prompts: list[str], temperature: float
) -> None:
    """On the target's own answers, with eight outcomes per step, the true one among them."""
    stored, drafted = bundles.read(pair), 0
    drafters = [ModelDrafter(graph(stored, on_the_cpu())) for graph in (FixedDraft, OnnxDraft)]
    sampling, draw = Sampling(temperature, seed=1), np.random.default_rng(0)
    sampler = Sampler(sampling, demo._pair.decoder.target.vocabulary)
    for prompt in prompts[:4]:
        asked = demo.tokenize([{"role": "user", "content": prompt}])
        answer = demo.generate(
            [{"role": "user", "content": prompt}], max_new_tokens=33, sampling=sampling
        ).tokens
        for drafter in drafters:
            drafter.prefill(asked)
        for true, following in itertools.pairwise(answer):
            tokens = {following, *draw.integers(4, 1000, 7).tolist()}
            roots = [Root(0, token) for token in sorted(tokens)]
            ours, theirs = (drafter.rollout([true], [], roots, 4, sampler) for drafter in drafters)
            assert ours == theirs
            drafted += sum(len(branch.tokens) for branch in ours)
    assert drafted > 1000


def test_a_graph_that_onnx_runtime_refuses_is_a_device_error(demo_copy: Path) -> None:
    (demo_copy / "target" / "suffix.onnx").write_bytes(b"not a graph")
    broken = bundles.read(bundles.demo())
    broken = bundles.Bundle(demo_copy, broken.manifest)
    with pytest.raises(DeviceError, match=r"suffix\.onnx: CPUExecutionProvider refused the graph"):
        OnnxTarget(broken, on_the_cpu())
