"""A target's own first layers and exit head as the draft."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny import VOCABULARY, write_genai_folder
from typer.testing import CliRunner

import mirror_edge
from mirror_edge import Sampling, Speculation, bundle
from mirror_edge.apps.cli import app
from mirror_edge.devices import Device
from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import export
from mirror_edge.export.exit_head import Correction
from mirror_edge.export.pipeline import Exported
from mirror_edge.export.split import draft_graph
from mirror_edge.memory import plan_memory
from mirror_edge.runtimes.onnx.runtime import cpu
from mirror_edge.trace import Trace

SOME = sorted({1, 5, 9, 77, 300, 319, *range(100, 160)})


def correction() -> Correction:
    random = np.random.default_rng(4)
    a, b = random.standard_normal((64, 8)), 0.1 * random.standard_normal((8, 64))
    return Correction(a.astype(np.float32), b.astype(np.float32))


@pytest.fixture(scope="module")
def made(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(
        target,
        "early-exit",
        tmp_path_factory.mktemp("made") / "bundle",
        precision="fp32",
        exit_layer=2,
        exit_tokens=SOME,
        correction=correction(),
    )


def test_its_logits_are_the_exit_heads(made: Exported) -> None:
    read = bundle.read(made.folder)
    text = np.random.default_rng(1).integers(2, VOCABULARY, 40)
    target = cpu().open_target(read, Device("cpu"), 1, Trace())
    said = target.prefix(text.tolist(), 0, len(SOME))
    assert said is not None
    draft = cpu().open_draft(read, Device("cpu"), 1, Trace())
    rows = np.arange(len(text))
    logits = draft.forward(text, rows, 0, None, rows)
    assert logits.shape == (40, VOCABULARY)
    others = np.setdiff1d(np.arange(VOCABULARY), SOME)
    assert logits[:, others].max() < -1e8
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(
        np.take_along_axis(logprobs, said.ids, axis=-1), said.logprobs, atol=2e-5
    )
    assert (logits.argmax(axis=-1) == said.ids[:, 0]).all()


@pytest.mark.parametrize(("precision", "tokens"), [("fp32", None), ("int4", SOME), ("fp16", SOME)])
def test_every_mode_says_the_same(
    precision: Any, tokens: Any, target: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    export(target, "early-exit", folder, precision=precision, exit_tokens=tokens)
    with mirror_edge.load(folder, target_threads=1, draft_threads=1) as model:
        assert model.has_draft
        for heat in (0.0, 1.0):
            said = {
                mode: model.generate(
                    "the quick brown fox",
                    max_new_tokens=40,
                    sampling=Sampling(temperature=heat, seed=3),
                    speculation=Speculation(mode, window=3, strict=True),  # type: ignore[arg-type]
                )
                for mode in ("ar", "sd", "mirror")
            }
            assert said["sd"].tokens == said["mirror"].tokens == said["ar"].tokens
            assert not said["sd"].stats.draft_losses
            assert said["sd"].stats.as_dict()["tokens_per_step"] > 1.0


def test_it_shares_the_targets_weights_and_the_memory_plan_counts_them_twice(
    made: Exported, target: Path, tmp_path: Path
) -> None:
    manifest = made.manifest
    assert manifest.draft is not None
    assert manifest.draft.graph == "target/draft.onnx"
    assert manifest.draft.model.layers == 2
    assert not (made.folder / "draft").exists()
    alone = export(
        target,
        None,
        tmp_path / "alone",
        precision="fp32",
        exit_layer=2,
        exit_tokens=SOME,
        correction=correction(),
    )
    weights = "target/weights.bin"
    grown = manifest.files[weights].bytes - alone.manifest.files[weights].bytes
    assert 0 < grown < 0.5 * alone.manifest.files[weights].bytes  # rotary tables with room for more
    done = CliRunner().invoke(app, ["inspect", str(made.folder)], catch_exceptions=False)
    assert "the target's own early exit" in done.stdout
    plan = plan_memory(manifest)
    assert manifest.draft.shared_bytes > 0.5 * alone.manifest.files[weights].bytes
    assert plan.draft_weights == manifest.draft.shared_bytes
    assert plan.draft_cache == manifest.draft.model.cache_bytes(2, 256 + 512)


def test_a_folder_of_that_name_is_the_draft(
    target: Path, draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(draft, tmp_path / "early-exit")
    monkeypatch.chdir(tmp_path)
    made = export(target, "early-exit", tmp_path / "bundle", precision="fp32")
    assert made.manifest.draft is not None
    assert made.manifest.draft.graph == "draft/draft.onnx"


def test_a_target_in_genai_format_has_one_too(genai: Path, tmp_path: Path) -> None:
    made = export(genai, "early-exit", tmp_path / "bundle")
    assert made.manifest.draft is not None
    assert made.manifest.draft.model.layers == 1
    assert made.deviations["draft, with trees"] < 1e-3


def test_what_cannot_be_honoured_is_refused(target: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--draft-precision int4: the draft is the target's own"):
        export(target, "early-exit", tmp_path / "bundle", draft_precision="int4")
    single = write_genai_folder(tmp_path / "single")
    with pytest.raises(ExportError, match="only one layer"):
        export(single, "early-exit", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_wrong_draft_is_caught(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*arguments: Any) -> Any:
        graph = draft_graph(*arguments)
        place = next(node for node in graph.graph.node if "exit/place" in node.input)
        place.input[0], place.input[1] = "exit/padded", "exit/shifted"
        values = np.roll(np.arange(VOCABULARY), 1) % (len(SOME) + 1)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, "exit/shifted"))
        return graph

    monkeypatch.setattr("mirror_edge.export.pieces.draft_graph", spoilt)
    with pytest.raises(ExportError, match=r"names tokens that the exit head cannot name"):
        export(target, "early-exit", tmp_path / "bundle", precision="fp32", exit_tokens=SOME)
    assert not (tmp_path / "bundle").exists()
