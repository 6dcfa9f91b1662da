"""The exit head against norm, LM head and top-k in numpy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import VOCABULARY, Checkpoint

from mirror_edge.bundle import Precision
from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import export
from mirror_edge.export.exit_head import Correction
from mirror_edge.export.exit_tokens import common_tokens
from mirror_edge.export.reference import session
from mirror_edge.export.source import locate
from mirror_edge.export.tokenizer import read_tokenizer

safetensors = pytest.importorskip("safetensors.numpy")

HIDDEN = 64
SOME = sorted({1, 5, 9, 77, 300, 319, *range(100, 160)})


def head(source: Path, hidden: Any, correction: Correction | None = None) -> Any:
    """Log-probabilities of all tokens, by hand."""
    weights = safetensors.load_file(source / "model.safetensors")

    rows = hidden / np.sqrt(np.mean(hidden**2, axis=-1, keepdims=True) + 1e-6)
    rows = rows * weights["model.norm.weight"]
    if correction is not None:
        low = rows @ correction.a
        rows = rows + (low / (1 + np.exp(-low))) @ correction.b
    return rows @ weights.get("lm_head.weight", weights.get("model.embed_tokens.weight")).T


def best(logits: Any, tokens: Any, count: int) -> tuple[Any, Any]:
    kept = logits[..., tokens]
    logprobs = kept - np.log(np.exp(kept).sum(axis=-1, keepdims=True))
    order = np.argsort(-logprobs, axis=-1)[..., :count]
    return np.asarray(tokens)[order], np.take_along_axis(logprobs, order, axis=-1)


def run(folder: Path, hidden: Any, count: int) -> tuple[Any, Any]:
    feeds = {"hidden": hidden, "top": np.array([count])}
    found = session(folder / "target/exit.onnx").run(["exit_ids", "exit_logprobs"], feeds)
    return found[0], found[1]


@pytest.fixture
def hidden() -> Any:
    return np.random.default_rng(3).standard_normal((1, 5, HIDDEN)).astype(np.float32)


def low_rank(scale: float) -> Correction:
    rng = np.random.default_rng(4)
    a = rng.standard_normal((HIDDEN, 8)).astype(np.float32)
    return Correction(a, (scale * rng.standard_normal((8, HIDDEN))).astype(np.float32))


@pytest.mark.parametrize("tokens", [None, SOME], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "correction",
    [None, low_rank(0.1), low_rank(0.0)],
    ids=["plain", "corrected", "zeros"],
)
def test_candidates_equal_norm_head_and_top_k(
    tied: bool,
    tokens: list[int] | None,
    correction: Correction | None,
    checkpoint: Checkpoint,
    draft: Path,
    tmp_path: Path,
    hidden: Any,
) -> None:
    source = checkpoint("Llama", tie_word_embeddings=tied)
    made = export(
        source,
        draft,
        tmp_path / "bundle",
        precision="fp32",
        exit_tokens=tokens,
        correction=correction,
    )
    ids, logprobs = run(made.folder, hidden, 8)
    named = list(range(VOCABULARY)) if tokens is None else tokens
    wanted_ids, wanted = best(head(source, hidden, correction), named, 8)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(logprobs, wanted, atol=2e-5)
    assert made.manifest.target.exit_vocabulary == len(named)
    shared = tokens is None and correction is None
    assert (made.folder / "target/exit.bin").exists() != shared


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16"])
def test_a_reduced_quantised_head_ranks_as_the_whole_one(
    precision: Precision, target: Path, draft: Path, tmp_path: Path, hidden: Any
) -> None:
    whole = export(target, draft, tmp_path / "whole", precision=precision)
    some = export(target, draft, tmp_path / "some", precision=precision, exit_tokens=SOME)
    rows = hidden.astype(np.float16 if precision == "fp16" else np.float32)
    ids, logprobs = run(whole.folder, rows, VOCABULARY)
    full = np.empty_like(logprobs)
    np.put_along_axis(full, ids, logprobs, axis=-1)
    few_ids, few = run(some.folder, rows, 8)
    wanted_ids, wanted = best(full, SOME, 8)
    np.testing.assert_allclose(few, wanted, atol=2e-2)
    assert (few_ids == wanted_ids).mean() > 0.8  # half precision has ties
    assert (some.folder / "target/exit.bin").stat().st_size < 40_000


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_a_correction_of_zeros_changes_no_candidate(
    precision: Precision, target: Path, draft: Path, tmp_path: Path, hidden: Any
) -> None:
    rows = hidden.astype(np.float16 if precision == "fp16" else np.float32)
    found = [
        run(
            export(
                target,
                draft,
                tmp_path / str(correction is None),
                precision=precision,
                exit_tokens=SOME,
                correction=correction,
            ).folder,
            rows,
            8,
        )
        for correction in (None, low_rank(0.0))
    ]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-3)


def test_a_correction_of_another_shape_is_refused(
    target: Path, draft: Path, tmp_path: Path
) -> None:
    wrong = Correction(np.zeros((HIDDEN, 4), np.float32), np.zeros((5, HIDDEN), np.float32))
    with pytest.raises(OptionError, match=r"correction: a must be \[64, rank\] and b \[rank, 64\]"):
        export(target, draft, tmp_path / "bundle", precision="fp32", correction=wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_large_vocabulary_keeps_its_commonest_and_its_special_tokens(
    target: Path, draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: Any
) -> None:
    monkeypatch.setattr("mirror_edge.export.exit_tokens.FULL_VOCABULARY", 128)
    made = export(target, draft, tmp_path / "bundle", precision="fp32")
    ids, _ = run(made.folder, hidden, 128)
    assert set(np.unique(ids)) <= {*range(128)}
    assert made.manifest.target.exit_vocabulary == 128


def test_special_tokens_are_kept_wherever_they_stand(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(target, folder)
    source = locate(folder, "TARGET", lambda *_: None)
    found = read_tokenizer(source)
    found.add_special_tokens(["<|turn|>"])
    tokens = common_tokens(found, [310], VOCABULARY, 50)
    assert tokens is not None
    assert tokens.tolist() == [*range(50), found.token_to_id("<|turn|>"), 310]
    assert common_tokens(found, [310], 50, 50) is None
    counts = np.zeros(VOCABULARY)
    counts[[305, 7, 200]] = 3, 2, 0.5
    tokens = common_tokens(found, [310], VOCABULARY, 5, counts)
    assert tokens is not None
    # Those that were seen, then the lowest ids, then the special ones.
    assert tokens.tolist() == sorted({305, 7, 200, 0, 1, found.token_to_id("<|turn|>"), 310})


@pytest.mark.parametrize("tokens", [[], [-1], [VOCABULARY]])
def test_exit_tokens_out_of_range_are_refused(
    tokens: list[int], target: Path, draft: Path, tmp_path: Path
) -> None:
    with pytest.raises((OptionError, ExportError), match=r"exit_tokens: must be ids from 0 to 319"):
        export(target, draft, tmp_path / "bundle", precision="fp32", exit_tokens=tokens)
    assert list(tmp_path.iterdir()) == []
