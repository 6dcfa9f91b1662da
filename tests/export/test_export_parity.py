"""Exported graphs, fp32, against transformers: the same logits and the same greedy text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FAMILIES, SHAPE, VOCABULARY, Checkpoint

from mirror_edge import bundle
from mirror_edge.devices import Device
from mirror_edge.export import export
from mirror_edge.export.check import CachedGraph, Tree
from mirror_edge.export.pipeline import Exported
from mirror_edge.runtimes.onnx.runtime import cpu
from mirror_edge.trace import Trace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CAPACITY = 200


@pytest.mark.parametrize("family", FAMILIES)
def test_target_and_draft_equal_transformers(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    architecture, config = FAMILIES[family]
    source = checkpoint(architecture, **config)
    made = export(source, source, tmp_path / "bundle", precision="fp32", exit_layer=1)
    assert bundle.read(made.folder).manifest == made.manifest

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    prompt = np.random.default_rng(0).integers(2, VOCABULARY, 100)
    wanted = _logits(model, prompt)

    target = Decoder(made)
    chunks = [prompt[:40], prompt[40:71], prompt[71:79], prompt[79:80], prompt[80:81], prompt[81:]]
    found = np.concatenate([target.forward(chunk) for chunk in chunks])
    assert np.abs(found - wanted).max() < 5e-4

    target.length = 79  # taking tokens back is forgetting them
    assert np.abs(target.forward(prompt[79:85]) - wanted[79:85]).max() < 5e-4

    target.length = 20
    greedy = target.greedy(prompt[:20], 64)
    with torch.no_grad():
        text = model.generate(
            torch.from_numpy(prompt[None, :20]), max_new_tokens=64, do_sample=False, eos_token_id=-1
        )
    assert greedy == text[0, 20:].tolist()

    ids, tree = prompt[:60], Tree(prompt[60:66], (-1, -1, 0, 2, 0, 1))
    rows = _draft_tree(made, ids, tree)
    for row, path in zip(rows, tree.texts(ids), strict=True):
        assert np.abs(row - _logits(model, path)[-1]).max() < 5e-4


def test_every_exit_layer_gives_the_same_logits(target: Path, draft: Path, tmp_path: Path) -> None:
    prompt = np.arange(2, 40)
    found = [
        Decoder(
            export(target, draft, tmp_path / str(layer), precision="fp32", exit_layer=layer)
        ).forward(prompt)
        for layer in range(1, SHAPE["num_hidden_layers"])
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


class Decoder:
    """A bundle's target on its real runtime, fed step by step."""

    def __init__(self, made: Exported) -> None:
        self.target = cpu().open_target(bundle.read(made.folder), Device("cpu"), 1, Trace())
        self.length = 0

    def forward(self, tokens: Any) -> Any:
        start = self.length
        self.length += len(tokens)
        self.target.prefix([int(token) for token in tokens], start, 0)
        return self.target.suffix().copy()

    def greedy(self, prompt: Any, count: int) -> list[int]:
        self.length = 0
        tokens = [int(self.forward(prompt)[-1].argmax())]
        while len(tokens) < count:
            tokens.append(int(self.forward(tokens[-1:])[-1].argmax()))
        return tokens


def _logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()


def _draft_tree(made: Any, ids: Any, tree: Tree) -> Any:
    draft = CachedGraph(made.folder / "draft/draft.onnx", made.manifest.draft.model, CAPACITY)
    past, size = len(ids), len(tree.parents)
    draft.run(
        0,
        past,
        input_ids=ids[None],
        position_ids=np.arange(past)[None],
        attention_bias=np.zeros((1, 1, past, past), np.float32),
        rows=np.array([past - 1]),
    )
    bias = np.full((1, 1, size, past + size), -1e9, np.float32)
    bias[..., :past] = 0
    for node in range(size):
        bias[0, 0, node, [past + other for other in tree.path(node)]] = 0
    depths = np.array([len(tree.path(node)) - 1 for node in range(size)])
    return draft.run(
        past,
        size,
        input_ids=tree.tokens[None],
        position_ids=(past + depths)[None],
        attention_bias=bias,
        rows=np.arange(size),
    )[0]
