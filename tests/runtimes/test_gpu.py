"""The target on a GPU provider: the CPU's logits, and few bytes copied back."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import save_checkpoint

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge import bundle as bundles
from mirror_edge.bundle import Bundle, Precision
from mirror_edge.errors import DeviceError
from mirror_edge.probe import probe
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.runtimes.onnx.target import OnnxTarget

SetupMaker = Callable[[], Setup]
CONTEXT = 1024
CLOSE = {"atol": 1e-3, "rtol": 0.0}


def exact_int4(bundle: Bundle) -> Bundle:
    """Stop providers from rounding the activations too, which each does differently."""
    for name in ("prefix", "suffix", "exit"):
        path = bundle.file(f"target/{name}.onnx")
        graph = onnx.load(path, load_external_data=False)
        for node in graph.graph.node:
            for item in node.attribute:
                if item.name == "accuracy_level":
                    item.i = 0
        onnx.save(graph, path)
    return bundle


@pytest.fixture(
    scope="module",
    params=[
        ("Llama", "fp32", True),
        ("Llama", "int4", True),
        ("Llama", "int4-mixed", False),
        ("Gemma3Text", "fp32", True),
    ],
    ids=lambda param: "-".join(map(str, param)),
)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from mirror_edge.export import export

    precision: Precision
    architecture, precision, tied = request.param
    folder = tmp_path_factory.mktemp(precision)
    windows = {"sliding_window": 64, "head_dim": 16, "query_pre_attn_scalar": 16}
    windows |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Warnings of third-party code.
        longer = {"max_position_embeddings": 2 * CONTEXT, "tie_word_embeddings": tied}
        more = windows if architecture == "Gemma3Text" else {}
        checkpoint = save_checkpoint(folder / "model", architecture, longer | more)
        made = export(checkpoint, None, folder / "bundle", precision=precision)
    return exact_int4(bundles.read(made.folder))


def text(length: int, vocabulary: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(4, vocabulary, length).tolist()


def test_the_gpus_logits_match_the_cpus(
    bundle: Bundle, on_cpu: SetupMaker, on_webgpu: SetupMaker
) -> None:
    here, there = OnnxTarget(bundle, on_cpu()), OnnxTarget(bundle, on_webgpu())
    ids = text(CONTEXT + 9, here.vocabulary)
    for start, end in ((0, 300), (300, CONTEXT)):
        found, wanted = (t.prefill(ids[start:end], start) for t in (there, here))
        np.testing.assert_allclose(found, wanted, **CLOSE)
    for width in range(1, 9):
        window = ids[CONTEXT : CONTEXT + width]
        signals = [target.prefix(window, CONTEXT, 5) for target in (there, here)]
        found, wanted = there.suffix(), here.suffix()
        np.testing.assert_allclose(found, wanted, **CLOSE)
        np.testing.assert_array_equal(there.likeliest(), found.argmax(axis=-1))
        ours, theirs = signals
        assert ours is not None
        assert theirs is not None
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, **CLOSE)
        assert (ours.ids == theirs.ids).mean() > 0.9  # The others are near ties.


@pytest.fixture(scope="module")
def on_the_gpu(pair: Path, on_webgpu: SetupMaker) -> Iterator[mirror_edge.Model]:
    """The demo pair with its target on the GPU provider."""
    on_webgpu()
    with mirror_edge.load(
        pair, target_device="webgpu", draft_device="cpu", draft_threads=1
    ) as model:
        yield model


@pytest.mark.parametrize("mode", ["ar", "sd", "mirror"])
def test_the_text_matches_the_cpus(
    mode: str, on_the_gpu: mirror_edge.Model, demo: mirror_edge.Model, prompts: list[str]
) -> None:
    asked = Speculation(mode=mode)  # type: ignore[arg-type]
    found = on_the_gpu.generate(prompts[0], max_new_tokens=16, speculation=asked)
    alone = Speculation(mode="ar")
    assert found.tokens == demo.generate(prompts[0], max_new_tokens=16, speculation=alone).tokens


def test_the_exit_head_may_run_on_the_drafts_device(
    on_the_gpu: mirror_edge.Model, demo: mirror_edge.Model, prompts: list[str]
) -> None:
    window = 3
    asked = Speculation(mode="mirror", window=window, exit_head="draft")
    found = on_the_gpu.generate(prompts[0], max_new_tokens=16, speculation=asked)
    alone = Speculation(mode="ar")
    assert found.tokens == demo.generate(prompts[0], max_new_tokens=16, speculation=alone).tokens
    assert found.stats.as_dict()["hypothesis_hits"] > 0
    assert list(on_the_gpu.placement["draft exit"]) == ["CPUExecutionProvider"]
    rows, one_row = window + 1, 8
    hidden = 4 * demo.bundle.manifest.target.model.hidden
    assert max(step.read for step in found.stats.steps) == rows * (hidden + one_row)


@pytest.mark.parametrize("candidates", [1, 2, 8])
def test_only_ids_and_the_token_channel_come_back(
    candidates: int, on_the_gpu: mirror_edge.Model, prompts: list[str]
) -> None:
    window = 3
    asked = Speculation(mode="mirror", window=window, candidates=candidates)
    answer = on_the_gpu.generate(prompts[0], max_new_tokens=16, speculation=asked)
    rows, one_row = window + 1, 8
    channel = rows * (candidates + 1) * 8
    assert channel <= rows * max(candidates * 12, 16)
    assert max(step.read for step in answer.stats.steps) == channel + rows * one_row
    for step in answer.stats.steps:
        assert 0 < step.sent < 100 * rows
    alone = on_the_gpu.generate(prompts[0], max_new_tokens=8, speculation=Speculation(mode="ar"))
    assert {step.read for step in alone.stats.steps} == {one_row}


def test_logits_come_back_only_where_sampling_needs_them(
    on_the_gpu: mirror_edge.Model, prompts: list[str]
) -> None:
    alone = Speculation(mode="ar")
    sampled = on_the_gpu.generate(
        prompts[0], max_new_tokens=6, sampling=Sampling(temperature=1.0), speculation=alone
    )
    row = 4 * on_the_gpu.bundle.manifest.target.model.vocabulary
    assert {step.read for step in sampled.stats.steps} == {row}


def test_every_node_of_the_target_is_on_the_gpu(
    on_the_gpu: mirror_edge.Model, prompts: list[str]
) -> None:
    placed = on_the_gpu.placement
    for graph in ("prefix", "exit", "suffix"):
        assert set(placed[graph]) == {"WebGpuExecutionProvider"}
    assert set(placed["draft"]) == {"CPUExecutionProvider"}
    figures = on_the_gpu.generate(prompts[0], max_new_tokens=4).stats.as_dict()
    assert figures["time_by_provider"]["WebGpuExecutionProvider"] > 0.5


def test_an_operator_that_the_gpu_lacks_is_refused(
    pair: Path, tmp_path: Path, on_webgpu: SetupMaker
) -> None:
    copy = shutil.copytree(pair, tmp_path / "bundle")
    path = copy / "target" / "exit.onnx"
    graph = onnx.load(path, load_external_data=False)
    last = graph.graph.output[1].name
    for node in graph.graph.node:
        for at, name in enumerate(node.output):
            node.output[at] = "before" if name == last else name
    graph.graph.node.append(onnx.helper.make_node("LogSoftmax", ["before"], [last], axis=-1))
    onnx.save(graph, path)
    altered = Bundle(copy, bundles.read(pair).manifest)
    with pytest.raises(DeviceError, match=r"exit.onnx: WebGpu.* would run 1 of .*1 LogSoftmax"):
        OnnxTarget(altered, on_webgpu())


def test_a_second_start_is_five_times_faster(
    pair: Path, on_webgpu: SetupMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading and the first step, in a child process; the first start stores the shaders."""
    on_webgpu()
    monkeypatch.setenv("MIRROR_EDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("MESA_SHADER_CACHE_DIR", str(tmp_path / "shaders"))
    cold, warm = (probe("webgpu", "target", pair) for _ in range(2))
    assert not cold.failure
    assert cold.error < 1e-3
    assert warm.load + warm.first < (cold.load + cold.first) / 5
