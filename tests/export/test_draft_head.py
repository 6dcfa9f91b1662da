"""A draft whose head names common tokens alone: the same numbers, fewer of them, the same text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny import FAMILIES, VOCABULARY, Checkpoint, random_streams
from typer.testing import CliRunner

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge import bundle as bundles
from mirror_edge.apps.cli import app
from mirror_edge.devices import Device
from mirror_edge.errors import BundleError, ExportError, OptionError
from mirror_edge.export import draft_head, export
from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.fixed_draft import FixedDraft
from mirror_edge.runtimes.onnx.providers import CPU
from mirror_edge.runtimes.onnx.session import Setup
from mirror_edge.trace import Trace

NAMED = 200


def streaming(checkpoint: Checkpoint, family: str, folder: Path) -> Path:
    """A checkpoint of the family with two random streams through its top layer."""
    architecture, config = FAMILIES[family]
    copy = Path(shutil.copytree(checkpoint(architecture, **config), folder))
    random_streams(2, layers=1).write(copy)
    return copy


def said(folder: Path, *, fixed: bool = False) -> np.ndarray:
    """A prompt, then rows with streams, among them tokens that a narrow head cannot name."""
    bundle = bundles.read(folder)
    setup = Setup(CPU.place(Device("cpu")), 1, (), Trace())
    graph = (FixedDraft if fixed else OnnxDraft)(bundle, setup)
    ids = np.random.default_rng(0).integers(4, VOCABULARY, 24)
    assert ids[20:].max() >= NAMED
    graph.forward(ids[:20], np.arange(20), 0, None, np.array([19]))
    every = np.arange(4)
    hidden = ~np.tri(4, dtype=np.bool_)
    return graph.forward(ids[20:], np.arange(20, 24), 20, hidden, every, np.array([1, 3]), 2).copy()


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("family", ["llama tied", "llama untied", "qwen2 tied", "qwen3"])
def test_its_logits_are_the_first_of_the_whole_heads(
    family: str, precision: Any, target: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    draft = streaming(checkpoint, family, tmp_path / "draft")
    whole, narrow = (
        export(target, draft, tmp_path / name, precision=precision, draft_vocabulary=size)
        for name, size in (("whole", None), ("narrow", NAMED))
    )
    full = said(whole.folder)
    assert full.shape == (4 + 4, VOCABULARY)
    np.testing.assert_allclose(said(narrow.folder), full[:, :NAMED], atol=1e-4)
    spec = narrow.manifest.draft
    assert spec is not None
    assert (spec.head_vocabulary, spec.named, spec.model.vocabulary) == (NAMED, NAMED, VOCABULARY)
    assert narrow.deviations[f"the draft's head of {NAMED} tokens"] < 1e-3
    if (family, precision) == ("llama untied", "fp32"):  # What nobody reads is not kept.
        weights = [made.manifest.files["draft/weights.bin"].bytes for made in (whole, narrow)]
        assert weights[1] < weights[0]
    done = CliRunner().invoke(app, ["inspect", str(narrow.folder)], catch_exceptions=False)
    assert "names 200 of 320 tokens" in done.stdout


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_at_fixed_shapes_it_says_the_same(
    precision: Any, target: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    draft = streaming(checkpoint, "llama tied", tmp_path / "draft")
    options: Any = {"precision": precision, "draft_vocabulary": NAMED, "draft_for": "qnn"}
    made = export(target, draft, tmp_path / "bundle", **options)
    exact = export(target, draft, tmp_path / "exact", precision="fp32", draft_vocabulary=NAMED)
    close = 2e-5 if precision == "fp32" else 2e-2  # stored as 16-bit floats
    np.testing.assert_allclose(said(made.folder, fixed=True), said(exact.folder), atol=close)


def test_every_mode_says_the_same(target: Path, draft: Path, tmp_path: Path) -> None:
    export(target, draft, tmp_path / "bundle", precision="fp32", draft_vocabulary=NAMED)
    with mirror_edge.load(tmp_path / "bundle", target_threads=1, draft_threads=1) as model:
        beyond = 0
        for heat in (0.0, 1.0):
            results = [
                model.generate(
                    "the quick brown fox",
                    max_new_tokens=40,
                    sampling=Sampling(temperature=heat, seed=3),
                    speculation=Speculation(mode, window=3),  # type: ignore[arg-type]
                )
                for mode in ("ar", "sd", "mirror")
            ]
            assert len({result.tokens for result in results}) == 1
            assert not any(result.stats.draft_losses for result in results)
            beyond += sum(token >= NAMED for token in results[0].tokens)
        assert beyond > 0


def test_what_cannot_be_honoured_is_refused(target: Path, draft: Path, tmp_path: Path) -> None:
    bundle, stages = tmp_path / "bundle", list[str]()
    for given, size, message in (
        (draft, VOCABULARY + 1, "--draft-vocabulary 321: must be from 1 to 320"),
        (None, NAMED, "--draft-vocabulary 200: there is no --draft to apply to"),
        ("early-exit", NAMED, "--draft-vocabulary 200: the draft is the target's own"),
    ):
        with pytest.raises(OptionError, match=message):
            export(
                target,
                given,
                bundle,
                precision="fp32",
                draft_vocabulary=size,
                on_progress=lambda stage, _: stages.append(stage),
            )
    assert stages == []
    with pytest.raises(OptionError, match="--draft-vocabulary 200: is for --format onnx"):
        export(target, draft, bundle, format="coreml", draft_vocabulary=NAMED)
    assert not bundle.exists()
    export(target, draft, bundle, precision="fp32", draft_vocabulary=NAMED)
    manifest = (bundle / bundles.MANIFEST).read_text()
    assert manifest.count('"head_vocabulary": 200') == 1
    (bundle / bundles.MANIFEST).write_text(
        manifest.replace('"head_vocabulary": 200', '"head_vocabulary": 321')
    )
    with pytest.raises(BundleError, match=r"draft.head_vocabulary is 321; it must be"):
        bundles.read(bundle)


def test_a_core_ml_bundle_is_not_made_of_it(target: Path, draft: Path, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    made = export(target, draft, tmp_path / "bundle", precision="fp32", draft_vocabulary=NAMED)
    with pytest.raises(ExportError, match="names 200 tokens only"):
        export(target, made.folder, tmp_path / "apple", format="coreml", precision="fp32")
    assert not (tmp_path / "apple").exists()


def test_a_head_cut_in_the_wrong_place_is_caught(
    target: Path, draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = draft_head.keep_rows

    def shifted(graph: onnx.ModelProto, spec: Any, tokens: Any, *more: Any) -> None:
        keep(graph, spec, tokens + 1, *more)

    monkeypatch.setattr(draft_head, "keep_rows", shifted)
    with pytest.raises(ExportError, match=r"the draft's head of 200 tokens: its logits are off by"):
        export(target, draft, tmp_path / "bundle", precision="fp32", draft_vocabulary=NAMED)
    assert not (tmp_path / "bundle").exists()
