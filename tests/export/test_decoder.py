"""The torch decoder: the logits of transformers, and refusals of what it does not compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import PLAIN, VOCABULARY, Checkpoint

from mirror_edge.errors import ExportError
from mirror_edge.export.source import locate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
checkpoints = pytest.importorskip("mirror_edge.export.checkpoint")
decoders = pytest.importorskip("mirror_edge.export.decoder")

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with linear rope": ("Llama", {"rope_parameters": LINEAR}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 32, "rms_norm_eps": 1e-5}),
    "llama, keys for every head": ("Llama", {"num_key_value_heads": 4}),
}


def read(folder: Path) -> Any:
    return checkpoints.read_checkpoint(locate(folder, "TARGET", lambda *_: None), 256)


@pytest.mark.parametrize("family", [*PLAIN, *MORE])
def test_logits_are_those_of_transformers(family: str, checkpoint: Checkpoint) -> None:
    architecture, config = {**PLAIN, **MORE}[family]
    source = checkpoint(architecture, **config)
    ids = torch.from_numpy(np.random.default_rng(0).integers(2, VOCABULARY, (1, 100)))
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(read(source)(ids), model(ids).logits, atol=5e-5, rtol=0)


def test_a_checkpoint_in_several_files_and_in_bfloat16(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("Qwen2", tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        expected = model.float()(ids).logits
        torch.testing.assert_close(read(tmp_path)(ids), expected, atol=5e-5, rtol=0)


def test_a_norm_survives_float16_and_tiny_rows() -> None:
    norm = decoders.Norm(64, 1e-6)
    norm.weight.data = torch.linspace(0.5, 2, 64)
    for scale in (1e-5, 1e-2, 1.0, 3e4):
        rows = scale * torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).clamp(
            -2, 2
        )
        exact = rows.double() * torch.rsqrt((rows.double() ** 2).mean(-1, keepdim=True) + 1e-6)
        exact = (exact * norm.weight).float()
        torch.testing.assert_close(norm(rows), exact, atol=1e-6, rtol=1e-5)
        if scale >= 1e-2:
            found = norm.half()(rows.half()).float()
            torch.testing.assert_close(found, exact, atol=5e-3, rtol=5e-3)
            norm.float()


@pytest.fixture
def copy(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint("Llama", tie_word_embeddings=True), tmp_path / "copy"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["OPTForCausalLM"]},
            "are made from LlamaForCausalLM, .* and this is OPT",
        ),
        ({"hidden_act": "gelu"}, "its hidden_act is gelu, but only silu is"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "are scaled by yarn; only linear and",
        ),
        ({"num_hidden_layers": 4}, r"not those of LlamaForCausalLM: .*Missing key.*layers\.3\."),
        ({"num_hidden_layers": 2}, r"not those of LlamaForCausalLM: .*Unexpected key.*layers\.2\."),
        ({"intermediate_size": 80}, r"LlamaForCausalLM: .*size mismatch for layers\.0\.mlp"),
    ],
)
def test_a_configuration_that_it_does_not_compute(
    copy: Path, change: dict[str, Any], message: str
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ExportError, match=rf"^{copy}: .*{message}"):
        read(copy)


def test_damaged_weights(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExportError, match=rf"^{file}: cannot be read \(.+\). .* copy the model"):
        read(copy)
