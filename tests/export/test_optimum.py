"""Folders that ``optimum-cli export onnx`` wrote, as targets: OPT in both of its shapes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import VOCABULARY, Checkpoint, write_genai_folder, write_tokenizer

import mirror_edge
from mirror_edge import Speculation, bundle
from mirror_edge.devices import Device
from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export import export
from mirror_edge.runtimes.onnx.runtime import cpu
from mirror_edge.trace import Trace

CLI = shutil.which("optimum-cli", path=str(Path(sys.executable).parent))
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
    target = cpu().open_target(bundle.read(made.folder), Device("cpu"), 1, Trace())

    def forward(start: int, ids: Any) -> Any:
        target.prefix([int(token) for token in ids], start, 0)
        return target.suffix().copy()

    cuts = [0, 30, 61, 69, 70, 71, 80]
    found = [forward(a, prompt[a:b]) for a, b in pairwise(cuts)]
    assert np.abs(np.concatenate(found) - wanted).max() < 5e-4
    greedy = [int(forward(0, prompt[:20])[-1].argmax())]
    while len(greedy) < 64:
        greedy.append(int(forward(19 + len(greedy), greedy[-1:])[-1].argmax()))
    assert greedy == text[0, 20:].tolist()

    with mirror_edge.load(made.folder) as model:
        answers = [
            model.generate("the lazy dog", max_new_tokens=40, speculation=Speculation(mode=mode))
            for mode in ("ar", "sd", "mirror")
        ]
    assert len({answer.tokens for answer in answers}) == 1


def test_optimum_folders_are_no_drafts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = optimum(checkpoint("OPT", **OPT), tmp_path / "onnx")
    with pytest.raises(OptionError, match=r"--draft .*: was written by optimum"):
        export(folder, folder, tmp_path / "bundle")
    with pytest.raises(OptionError, match=r"--draft early-exit: TARGET was written by optimum"):
        export(folder, "early-exit", tmp_path / "bundle")


def test_a_graph_without_a_cache_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = optimum(checkpoint("OPT", **OPT), tmp_path / "onnx", "--task", "text-generation")
    draft = write_genai_folder(tmp_path / "draft")
    with pytest.raises(ExportError, match="not a decoder with a cache"):
        export(folder, draft, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
