"""The embedding of quantised bundles is stored in 8 bits, and read as it was rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tiny import Checkpoint

from mirror_edge.bundle import Precision
from mirror_edge.export import export, weights
from mirror_edge.export.embedding import BLOCK, MIDDLE, read_in_place, round_embedding

pytest.importorskip("torch")


def stored(folder: Path, graph: str) -> dict[str, Any]:
    """The weights of a bundle's graph."""
    model = onnx.load(folder / graph, load_external_data=False)
    return {
        tensor.name: np.array(weights.load(tensor, (folder / graph).parent))
        for tensor in model.graph.initializer
    }


def lookup(table: np.ndarray, *, shared: bool = False) -> ModelProto:
    """A graph that looks rows up in `table` and multiplies them, by `table` too if `shared`."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Transpose", ["table" if shared else "other"], ["head"]),
        helper.make_node("MatMul", ["rows", "head"], ["logits"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("rows", "logits")
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "S"])
    tables = [numpy_helper.from_array(table, "table")]
    tables.append(numpy_helper.from_array(np.zeros_like(table[:8]), "other"))
    graph = helper.make_graph(nodes, "g", [ids], outputs, tables)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rounded(model: ModelProto, folder: Path) -> ModelProto:
    weights.gather(model, folder, folder / "weights.bin", move=False)
    round_embedding(model, folder / "weights.bin")
    onnx.save(model, folder / "graph.onnx")
    return model


@pytest.mark.parametrize("width", [16, 48, 64])
def test_a_row_is_read_within_half_a_step_of_what_it_was(width: int, tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((5000, width)).astype(np.float32)
    table[7] = 0.0
    table[8, :BLOCK] *= 1e-30
    rounded(lookup(table), tmp_path)
    session = ort.InferenceSession(tmp_path / "graph.onnx")
    ids = np.array([[0, 7, 8, 4095, 4096, 4999]])
    (rows,) = session.run(["rows"], {"input_ids": ids})
    for row, token in zip(rows[0], ids[0], strict=True):
        for start in range(0, width, BLOCK):
            block = table[token, start : start + BLOCK]
            step = np.abs(block).max() / 127
            assert np.abs(row[start : start + BLOCK] - block).max() <= 0.501 * step


def test_an_embedding_that_is_the_head_too_stays(tmp_path: Path) -> None:
    model = lookup(np.ones((400, 64), np.float32), shared=True)
    before = [node.op_type for node in model.graph.node]
    assert [node.op_type for node in rounded(model, tmp_path).graph.node] == before


@pytest.mark.parametrize("precision", ["int4", "int4-mixed", "int8"])
def test_a_quantised_bundle_has_its_embeddings_in_8_bits(
    precision: Precision, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    models = [
        checkpoint("Llama", tie_word_embeddings=False, num_hidden_layers=layers)
        for layers in (3, 2)
    ]
    folder = export(*models, tmp_path / "bundle", precision=precision).folder
    for source, graph in zip(models, ("target/prefix.onnx", "draft/draft.onnx"), strict=True):
        found = stored(folder, graph)
        whole = found["model.embed_tokens.weight_Q8"].astype(np.float32) - MIDDLE
        scales = found["model.embed_tokens.weight_scales"]
        own = AutoModelForCausalLM.from_pretrained(source).get_input_embeddings().weight
        blocks = whole.reshape(len(whole), -1, BLOCK) * scales[..., None]
        exact = own.detach().float().numpy().reshape(blocks.shape)
        assert (np.abs(blocks - exact) <= 0.501 * scales[..., None]).all()
        assert not any(v.dtype == np.float32 and v.size == own.numel() for v in found.values())


@pytest.mark.parametrize("precision", ["int4", "int4-mixed", "int8"])
def test_an_embedding_that_is_the_head_too_is_read_where_the_head_is(
    precision: Precision, target: Path, tmp_path: Path
) -> None:
    folder = export(target, None, tmp_path / "bundle", precision=precision).folder / "target"
    rows, head = (
        {
            tensor.name.removesuffix("/rows"): {e.key: e.value for e in tensor.external_data}
            for tensor in onnx.load(folder / graph, load_external_data=False).graph.initializer
            if tensor.name.startswith("lm_head.")
        }
        for graph in ("prefix.onnx", "suffix.onnx")
    )
    assert len(rows) == 2
    assert rows == head


def test_the_rows_of_a_head_are_not_copied_to_be_read() -> None:
    weight = TensorProto(name="head_Q4", data_type=TensorProto.UINT8, dims=[320, 2, 16])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    lookup = ["reshaped", "input_ids", "scales"]
    nodes = [
        helper.make_node("Reshape", ["head_Q4", "shape"], ["reshaped"]),
        helper.make_node("GatherBlockQuantized", lookup, ["rows"], domain="com.microsoft", bits=4),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], [weight]))
    read_in_place(model)
    (node,) = model.graph.node
    rows = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[0])
    assert list(rows.dims) == [320, 32]
    assert rows.external_data == weight.external_data


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_bundles_have_them_as_they_are(
    precision: Precision, target: Path, tmp_path: Path
) -> None:
    folder = export(target, None, tmp_path / "bundle", precision=precision).folder
    assert not any(name.endswith("_Q8") for name in stored(folder, "target/prefix.onnx"))


def test_a_scaled_embedding_is_as_close_as_the_other_weights(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    made = export(checkpoint("Gemma", head_dim=16), None, tmp_path / "bundle", precision="int8")
    assert "lm_head.MatMul.weight_Q8/rows" in stored(made.folder, "target/prefix.onnx")
    assert made.deviations["the full graph of the target in int8"] < 0.1
