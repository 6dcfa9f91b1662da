"""Every precision passes its own check; families that the builder gets wrong are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import Checkpoint

from mirror_edge import bundle
from mirror_edge.bundle import Precision
from mirror_edge.errors import ExportError
from mirror_edge.export import export
from mirror_edge.export.split import TargetGraphs, draft_graph, split_target


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16"])
def test_quantised_and_half_precision_graphs_pass_their_check(
    precision: Precision, target: Path, draft: Path, tmp_path: Path
) -> None:
    made = export(target, draft, tmp_path / "bundle", precision=precision)
    manifest = bundle.read(made.folder).manifest
    assert manifest.draft is not None
    for spec in (manifest.target.model, manifest.draft.model):
        assert spec.precision == precision
        assert spec.dtype == ("float16" if precision == "fp16" else "float32")
    assert made.deviations["the first 2 layers of the target in fp32"] < 1e-4
    assert made.deviations["target, cut"] < 0.05


def test_int4_mixed_is_closer_to_the_model_and_has_a_draft_in_int4(
    target: Path, draft: Path, tmp_path: Path
) -> None:
    off = {}
    for precision in ("int4", "int4-mixed"):
        made = export(target, draft, tmp_path / precision, precision=precision)
        off[precision] = made.deviations[f"the full graph of the target in {precision}"]
        assert made.manifest.target.model.precision == precision
        assert made.manifest.draft is not None
        assert made.manifest.draft.model.precision == "int4"
    assert off["int4-mixed"] < 0.9 * off["int4"]


def test_half_precision_knows_families_with_norms_of_queries_and_keys(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    pair = [checkpoint("Qwen3", head_dim=16, num_hidden_layers=layers) for layers in (3, 2)]
    made = export(*pair, tmp_path / "bundle", precision="fp16")
    assert made.deviations["target, cut"] < 0.05


def test_draft_has_the_targets_precision_unless_told(
    target: Path, draft: Path, tmp_path: Path
) -> None:
    made = export(target, draft, tmp_path / "bundle", precision="int4", draft_precision="fp32")
    assert made.manifest.draft is not None
    assert made.manifest.draft.model.precision == "fp32"
    assert made.manifest.target.model.precision == "int4"


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_family_that_the_builder_gets_wrong_is_caught(
    precision: Precision, checkpoint: Checkpoint, draft: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"of the target in fp32: its logits are off by"):
        export(checkpoint("Olmo"), draft, tmp_path / "bundle", precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_draft_is_refused_by_name(
    checkpoint: Checkpoint, target: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="the full graph of the draft in fp32"):
        export(target, checkpoint("Olmo"), tmp_path / "bundle", precision="fp32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize(
    ("piece", "graphs"),
    [("suffix", "target/prefix.onnx with target/suffix.onnx"), ("draft", "draft/draft.onnx")],
)
def test_a_graph_that_was_cut_wrongly_is_caught(
    piece: str,
    graphs: str,
    precision: Precision,
    target: Path,
    draft: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoilt(graph: Any) -> Any:
        for node in graph.graph.node:
            if node.op_type == "GroupQueryAttention":
                if piece == "draft":
                    node.input[10] = ""  # every node sees its cousins
                else:
                    next(item for item in node.attribute if item.name == "do_rotary").i = 0
        return graph

    def cut(*arguments: Any) -> TargetGraphs:
        graphs = split_target(*arguments)
        return replace(graphs, suffix=spoilt(graphs.suffix)) if piece == "suffix" else graphs

    def drafted(*arguments: Any) -> Any:
        return spoilt(draft_graph(*arguments)) if piece == "draft" else draft_graph(*arguments)

    monkeypatch.setattr("mirror_edge.export.pieces.split_target", cut)
    monkeypatch.setattr("mirror_edge.export.pieces.draft_graph", drafted)
    with pytest.raises(ExportError, match=rf"{graphs}: its logits are off by"):
        export(target, draft, tmp_path / "bundle", precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_a_family_that_the_builder_cannot_read_is_refused_with_the_cause(
    checkpoint: Checkpoint, draft: Path, tmp_path: Path
) -> None:
    source = checkpoint("Olmo2")
    with pytest.raises(ExportError, match=r"cannot build a graph of Olmo2ForCausalLM \(NotImpl"):
        export(source, draft, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
