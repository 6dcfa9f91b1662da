"""Folders that ``optimum-cli export onnx`` wrote, as targets: OPT in both of its shapes."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import VOCABULARY, Checkpoint, write_genai_folder, write_tokenizer

from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import export
from mirror_edge.export.check import CachedGraph

CLI = shutil.which("optimum-cli")
pytestmark = pytest.mark.skipif(
    CLI is None, reason="optimum-cli is absent: pip install 'mirror-edge[optimum]' elsewhere"
)
SHAPES: dict[str, dict[str, Any]] = {
    "norm before": {},
    "norm after, narrow embedding": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
}
OPT = {"ffn_dim": 96, "init_std": 0.12, "word_embed_proj_dim": 64}


def optimum(source: Path, folder: Path, *options: str) -> Path:
    assert CLI is not None
    task = ["--task", "text-generation-with-past"]
    command = [CLI, "export", "onnx", "-m", source, *(options or task), folder]
    subprocess.run(command, check=True, capture_output=True)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [None, range(40, 90)], ids=["all tokens", "some tokens"])
def test_opt_equals_transformers(
    shape: str, tokens: range | None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = checkpoint("OPT", **{**OPT, **SHAPES[shape]})
    folder = optimum(source, tmp_path / "onnx")
    draft = write_genai_folder(tmp_path / "draft")
    made = export(folder, draft, tmp_path / "bundle", exit_layer=1, exit_tokens=tokens)
    spec = made.manifest.target.model
    assert (spec.cache, spec.layers, spec.precision) == ("concat", 3, "fp32")

    model = AutoModelForCausalLM.from_pretrained(source).eval()
    prompt = np.random.default_rng(0).integers(2, VOCABULARY, 80)
    with torch.no_grad():
        wanted = model(torch.from_numpy(prompt)[None]).logits[0].numpy()
        text = model.generate(
            torch.from_numpy(prompt[None, :20]), max_new_tokens=64, do_sample=False, eos_token_id=-1
        )
    prefix = CachedGraph(made.folder / "target/prefix.onnx", spec, 100)
    suffix = CachedGraph(made.folder / "target/suffix.onnx", spec, 100)

    def forward(start: int, ids: Any) -> Any:
        hidden = prefix.run(start, len(ids), input_ids=np.asarray(ids, np.int64)[None])
        return suffix.run(start, len(ids), hidden=hidden, rows=np.arange(len(ids)))[0]

    cuts = [0, 30, 61, 69, 70, 71, 80]
    found = [forward(a, prompt[a:b]) for a, b in pairwise(cuts)]
    assert np.abs(np.concatenate(found) - wanted).max() < 5e-4
    greedy = [int(forward(0, prompt[:20])[-1].argmax())]
    while len(greedy) < 64:
        greedy.append(int(forward(19 + len(greedy), greedy[-1:])[-1].argmax()))
    assert greedy == text[0, 20:].tolist()


def test_optimum_folders_are_no_drafts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = optimum(checkpoint("OPT", **OPT), tmp_path / "onnx")
    with pytest.raises(OptionError, match=r"--draft .*: was written by optimum"):
        export(folder, folder, tmp_path / "bundle")


def test_a_graph_without_a_cache_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = optimum(checkpoint("OPT", **OPT), tmp_path / "onnx", "--task", "text-generation")
    draft = write_genai_folder(tmp_path / "draft")
    with pytest.raises(ExportError, match="not a decoder with a cache"):
        export(folder, draft, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
