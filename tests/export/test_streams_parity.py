"""Exported streams, fp32, against the torch module: main and stream logits, with any mask."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from tiny import VOCABULARY, Checkpoint, random_streams, streaming_draft

from mirror_edge import bundle
from mirror_edge.devices import Device
from mirror_edge.errors import ExportError
from mirror_edge.export import export
from mirror_edge.export.check import Tree
from mirror_edge.export.pipeline import Exported
from mirror_edge.export.split import draft_graph
from mirror_edge.export.streams import Streams
from mirror_edge.runtimes.onnx.draft import OnnxDraft
from mirror_edge.runtimes.onnx.runtime import cpu
from mirror_edge.trace import Trace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA: tuple[str, dict[str, Any]] = ("Llama", {"tie_word_embeddings": True})
QWEN3: tuple[str, dict[str, Any]] = ("Qwen3", {"tie_word_embeddings": True, "head_dim": 16})
TREE = Tree(np.array([7, 99, 12, 200, 5, 31, 64]), (-1, -1, 0, 2, 0, 1, 3))


def with_streams(source: Path, folder: Path, count: int, layers: int) -> Path:
    shutil.copytree(source, folder)
    random_streams(count, layers).write(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "count", "layers"), [(LLAMA, 2, 1), (LLAMA, 1, 3), (QWEN3, 3, 2)]
)
def test_main_rows_and_streams_equal_torch(
    family: tuple[str, dict[str, Any]],
    count: int,
    layers: int,
    checkpoint: Checkpoint,
    target: Path,
    tmp_path: Path,
) -> None:
    source = with_streams(checkpoint(family[0], **family[1]), tmp_path / "d", count, layers)
    made = export(target, source, tmp_path / "bundle", precision="fp32")
    draft, model = opened(made), streaming_draft(source).eval()
    ids = np.random.default_rng(0).integers(2, VOCABULARY, 40)

    def torch_logits(text: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            main, ahead = model(torch.from_numpy(text)[None])
        return main[0].numpy(), ahead[0].numpy()

    main, ahead = torch_logits(ids)

    def check(start: int, stop: int, streamed: list[int], few: int = count) -> None:
        """Plain rows `start` to `stop`, of which those in `streamed` have `few` streams."""
        rows = np.arange(stop - start)
        of = np.array(streamed) if streamed else None
        found = draft.forward(ids[start:stop], rows + start, start, None, rows, of, few)
        assert np.abs(found[: len(rows)] - main[start:stop]).max() < 5e-4
        expected = ahead[[start + row for row in streamed], :few].reshape(-1, VOCABULARY)
        assert np.abs(found[len(rows) :] - expected).max(initial=0.0) < 5e-4

    check(0, 1, [])  # an empty cache
    check(1, 20, [2, 3, 18])
    check(20, 21, [0])
    check(21, 30, [])
    check(15, 33, list(range(18)))  # rows that are taken back
    check(33, 37, [1])
    check(37, 40, [0, 2], 1)  # the first stream alone

    # A tree behind the text, beside two slots of somebody else's.
    junk, start = 2, 40
    draft.forward(np.array([9, 9]), np.array([40, 40]), start, None, np.array([0]))
    start += junk
    size = len(TREE.tokens)
    hidden = np.ones((size, junk + size), dtype=np.bool_)
    for node in range(size):
        hidden[node, [junk + other for other in TREE.path(node)]] = False
    hidden[:, junk:] = np.tril(hidden[:, junk:])  # nobody sees a later row, marked or not
    depths = np.array([len(TREE.path(node)) - 1 for node in range(size)])
    streamed = np.array([1, 3, 5])
    wanted = np.array([0, 2, 3, 6])
    found = draft.forward(TREE.tokens, 40 + depths, start, hidden, wanted, streamed, count)
    texts = TREE.texts(ids)
    expected = [torch_logits(texts[node])[0][-1:] for node in wanted]
    expected += [torch_logits(texts[node])[1][-1] for node in streamed]
    assert np.abs(found - np.concatenate(expected)).max() < 5e-4


def wrong_places(graph: Any) -> None:
    one = next(t for t in graph.graph.initializer if t.name == "mirror/stream/one")
    one.CopyFrom(numpy_helper.from_array(np.array(2), one.name))


def wrong_mask(graph: Any) -> None:
    for node in graph.graph.node:
        if "stream_attention_bias" in node.input:
            node.input[list(node.input).index("stream_attention_bias")] = ""


def wrong_stream(graph: Any) -> None:
    node = next(node for node in graph.graph.node if node.name == "mirror/stream/moved")
    node.input[0] = "mirror/stream/step"  # no offset


@pytest.mark.parametrize("spoil", [wrong_places, wrong_mask, wrong_stream])
def test_a_graph_with_wrong_streams_is_refused(
    spoil: Callable[[Any], None],
    target: Path,
    draft: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoilt(*arguments: Any) -> Any:
        graph = draft_graph(*arguments)
        spoil(graph)
        return graph

    monkeypatch.setattr("mirror_edge.export.pieces.draft_graph", spoilt)
    source = with_streams(draft, tmp_path / "d", 2, 1)
    with pytest.raises(ExportError, match=r"draft/draft.onnx: its logits are off by"):
        export(target, source, tmp_path / "bundle", precision="fp32")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        (random_streams(2, layers=3), "go through 3 layers and the draft has 2"),
        (random_streams(2, layers=1, hidden=32), "are 32 wide and the draft's rows 64"),
    ],
)
def test_streams_of_another_draft_are_refused_before_anything_is_built(
    streams: Streams, message: str, target: Path, draft: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(draft, tmp_path / "d"))
    streams.write(source)
    stages: list[str] = []
    with pytest.raises(ExportError, match=message):
        export(target, source, tmp_path / "b", on_progress=lambda stage, _: stages.append(stage))
    assert stages == []


def opened(made: Exported) -> OnnxDraft:
    return cpu().open_draft(bundle.read(made.folder), Device("cpu"), 1, Trace())
