"""The draft at fixed shapes says what the other one says, and drafts what it drafts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import Checkpoint, random_streams

from mirror_edge import bundle as bundles
from mirror_edge.bundle import Bundle, Precision
from mirror_edge.devices import Device
from mirror_edge.errors import DeviceError, ExportError, OptionError
from mirror_edge.export import export, fixed
from mirror_edge.export.fixed import fixed_graph, fixed_spec
from mirror_edge.hypotheses import Root
from mirror_edge.protocols import DraftGraph
from mirror_edge.rollout import ModelDrafter
from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.fixed_draft import FixedDraft
from mirror_edge.runtimes.onnx.providers import CPU
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.sampling import Sampler, Sampling
from mirror_edge.trace import Trace

CLOSE = {"atol": 2e-5, "rtol": 0.0}


@pytest.fixture(scope="module", params=[0, 2], ids=["plain", "streaming"])
def bundle(
    request: pytest.FixtureRequest,
    target: Path,
    draft: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    folder = tmp_path_factory.mktemp("fixed")
    source = Path(shutil.copytree(draft, folder / "draft"))
    if request.param:
        random_streams(request.param, layers=1).write(source)
    made = export(target, source, folder / "bundle", precision="fp32", draft_for="qnn")
    assert made.deviations["draft, at fixed shapes"] < 1e-5
    return bundles.read(made.folder)


def on_the_cpu() -> Setup:
    return Setup(CPU.place(Device("cpu")), 1, (), Trace())


def test_logits_are_those_of_the_other_graph(bundle: Bundle) -> None:
    """A prompt in odd chunks, then more tree rows than go through the graph at once."""
    graphs: tuple[DraftGraph, ...] = (
        FixedDraft(bundle, on_the_cpu()),
        OnnxDraft(bundle, on_the_cpu()),
    )
    draw = np.random.default_rng(0)
    ids = draw.integers(4, 300, 240)
    ahead = graphs[0].streams
    found: list[list[np.ndarray]] = [[], []]
    for logits, graph in zip(found, graphs, strict=True):
        draw = np.random.default_rng(1)
        for start, end in ((0, 1), (1, 4), (4, 150), (150, 190)):
            wanted = np.array([end - start - 1])
            places = np.arange(start, end)
            logits.append(graph.forward(ids[start:end], places, start, None, wanted).copy())
        hidden = np.concatenate([draw.random((50, 10)) < 0.3, ~np.eye(50, dtype=np.bool_)], axis=1)
        streamed = np.flatnonzero(draw.random(50) < 0.5) if ahead else None
        rows = np.sort(draw.choice(50, 30, replace=False))
        places = np.full(50, 190)
        logits.append(graph.forward(ids[190:], places, 190, hidden, rows, streamed, ahead).copy())
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_it_drafts_exactly_what_the_other_drafts(
    bundle: Bundle, temperature: float, seed: int
) -> None:
    """Answers of several steps: prompts, hits and misses, branches that come true."""
    graphs = [kind(bundle, on_the_cpu()) for kind in (FixedDraft, OnnxDraft)]
    draft_the_same(graphs, Sampler(Sampling(temperature=temperature, seed=seed), 320), (2, 150))


@pytest.mark.parametrize("seed", range(4))
def test_it_goes_on_behind_the_rows_that_it_has(
    target: Path, draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Both remember 64 tokens of a text of up to 256."""
    monkeypatch.setattr(fixed, "_CONTEXT", 64)
    made = export(target, draft, tmp_path / "bundle", precision="fp32", draft_for="qnn")
    bundle = bundles.read(made.folder)
    graphs = FixedDraft(bundle, on_the_cpu()), OnnxDraft(bundle, on_the_cpu())
    assert (graphs[0].main, graphs[0].context) == (64, 256)
    graphs[1].main = 64
    draft_the_same(graphs, Sampler(Sampling(seed=seed), 320), (100, 200))


def draft_the_same(
    graphs: Sequence[DraftGraph], sampler: Sampler, lengths: tuple[int, int]
) -> None:
    """Behind a prompt of one of these lengths."""
    drafters = [ModelDrafter(graph) for graph in graphs]
    draw = np.random.default_rng(sampler.sampling.seed)
    prompt = draw.integers(4, 300, int(draw.integers(*lengths))).tolist()
    for drafter in drafters:
        drafter.prefill(prompt)
    committed, drafted = [int(draw.integers(4, 300))], []
    for _ in range(6):
        rows = len(drafted) + 1
        roots = [Root(j, int(draw.integers(4, 300))) for j in range(rows) for _ in range(3)]
        ours, theirs = (
            drafter.rollout(committed, drafted, roots, 4, sampler) for drafter in drafters
        )
        assert ours == theirs
        assert ours
        true = ours[int(draw.integers(len(ours)))]
        committed = [*drafted[: true.root.row], true.root.token]
        drafted = list(true.tokens) if draw.random() < 0.7 else []


def test_padding_changes_no_bit(bundle: Bundle) -> None:
    draft = FixedDraft(bundle, on_the_cpu())
    ids = np.random.default_rng(2).integers(4, 300, 60)
    draft.forward(ids[:40], np.arange(40), 0, None, np.array([39]))
    full = draft.forward(ids[40:], np.arange(40, 60), 40, None, np.arange(20)).copy()
    for rows in (1, 7, 19):
        fed = draft.forward(
            ids[40 : 40 + rows], np.arange(40, 40 + rows), 40, None, np.arange(rows)
        )
        np.testing.assert_array_equal(fed, full[:rows])


def test_every_dimension_is_a_number_and_every_operator_plain(bundle: Bundle) -> None:
    spec = bundle.manifest.draft
    assert spec is not None
    assert spec.fixed is not None
    for name, rows in (
        (spec.fixed.prefill, spec.fixed.chunk),
        (spec.fixed.rollout, spec.fixed.rows),
    ):
        graph = onnx.load(bundle.file(name), load_external_data=False)
        for entry in [*graph.graph.input, *graph.graph.output]:
            dims = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
            assert dims
            assert all(dims)
        (tokens,) = (entry for entry in graph.graph.input if entry.name == "input_ids")
        assert tokens.type.tensor_type.shape.dim[1].dim_value == rows
        assert not {node.domain for node in graph.graph.node} - {""}


def test_the_graphs_share_the_weights_of_the_draft(bundle: Bundle) -> None:
    files = bundle.manifest.files
    graphs = [files[name].bytes for name in files if name.startswith("draft/fixed")]
    assert len(graphs) == 2
    assert sum(graphs) < 200_000 < files["draft/weights.bin"].bytes


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_a_quantised_draft_comes_with_halves(
    precision: Precision, target: Path, draft: Path, tmp_path: Path
) -> None:
    made = export(target, draft, tmp_path / "bundle", precision=precision, draft_for="openvino")
    assert made.deviations["draft, at fixed shapes"] < 5e-2
    read = bundles.read(made.folder)
    assert "draft/fixed.bin" in read.manifest.files
    assert not (made.folder / "exact").exists()
    fixed = FixedDraft(read, on_the_cpu())
    logits = fixed.forward(np.arange(4, 9), np.arange(5), 0, None, np.array([4]))
    assert np.isfinite(logits).all()


def test_a_draft_whose_first_layer_turns_no_positions_has_fixed_shapes(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("SmolLM3", no_rope_layers=[0, 1, 1])
    made = export(source, source, tmp_path / "bundle", precision="fp32", draft_for="qnn")
    assert made.deviations["draft, at fixed shapes"] < 1e-3


def test_a_draft_with_windows_is_refused_for_npus_before_anything_is_built(
    checkpoint: Checkpoint, target: Path, tmp_path: Path
) -> None:
    source = checkpoint("Mistral", sliding_window=80)
    stages: list[str] = []
    with pytest.raises(ExportError, match=r"--draft-for: .* through a window of 80 tokens"):
        export(
            target,
            source,
            tmp_path / "bundle",
            draft_for="qnn",
            on_progress=lambda stage, _: stages.append(stage),
        )
    assert stages == []


def test_what_cannot_have_fixed_shapes_is_refused(
    bundle: Bundle, target: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="there is no --draft to apply to"):
        export(target, None, tmp_path / "no", draft_for="qnn")
    with pytest.raises(OptionError, match="must be one of qnn, openvino"):
        export(target, target, tmp_path / "no", draft_for="abacus")
    with pytest.raises(OptionError, match=r"--draft-for coreml: .* Give --format coreml instead"):
        export(target, target, tmp_path / "no", draft_for="coreml")
    with pytest.raises(OptionError, match="every draft is made for the Neural Engine"):
        export(target, target, tmp_path / "no", draft_for="coreml", format="coreml")
    spec = bundle.manifest.draft
    assert spec is not None
    graph = onnx.load(bundle.file(spec.graph), load_external_data=False)
    node = next(node for node in graph.graph.node if node.op_type == "GroupQueryAttention")
    node.attribute.append(onnx.helper.make_attribute("local_window_size", 16))
    sizes = fixed_spec(spec.model, spec.streams)
    with pytest.raises(ExportError, match="attention with local_window_size = 16"):
        fixed_graph(graph, spec.model, sizes, spec.streams, rollout=True, named=spec.named)


def test_a_bundle_without_it_says_how_to_get_it(bundle: Bundle) -> None:
    spec = bundle.manifest.draft
    assert spec is not None
    without = replace(bundle.manifest, draft=replace(spec, fixed=None))
    with pytest.raises(DeviceError, match="Export with --draft-for"):
        FixedDraft(Bundle(bundle.folder, without), on_the_cpu())
