"""A model's entry in the manifest, from its full graph and its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from onnx import ModelProto, TensorProto, ValueInfoProto

from mirror_edge.bundle import ModelSpec, Precision
from mirror_edge.errors import ExportError
from mirror_edge.export.graph import attribute
from mirror_edge.export.source import Source

__all__ = ["graph_precision", "model_spec", "probe_layers"]

_BITS: dict[object, Precision] = {4: "int4", 8: "int8"}


def model_spec(source: Source, model: ModelProto, genai: dict[str, object]) -> ModelSpec:
    """The specification of `model`; `genai` is the builder's configuration, if it built the graph.

    Raises:
        ExportError: for a graph that is not a decoder, or an unknown size.
    """
    inputs = {entry.name: entry for entry in model.graph.input}
    layers = sum(f"past_key_values.{i}.key" in inputs for i in range(len(inputs)))
    logits = next((entry for entry in model.graph.output if entry.name == "logits"), None)
    if "input_ids" not in inputs or not layers or logits is None:
        raise ExportError(
            f"{source.folder}: its graph is not a decoder with a cache: it needs the inputs "
            "input_ids and past_key_values.*.key and the output logits. "
            "With optimum, export with `--task text-generation-with-past`."
        )
    own = {f"past_key_values.{i}.{kind}" for i in range(layers) for kind in ("key", "value")}
    if strange := {name for name in inputs if name.startswith("past")} ^ own:
        raise ExportError(
            f"{source.folder}: some of its layers keep state other than keys and values (its graph "
            f"has or lacks {min(strange)}), which cannot be rolled back after a rejected guess. "
            "This architecture is not supported."
        )
    section = genai.get("model") or source.genai.get("model") or {}
    assert isinstance(section, dict)
    decoder = section.get("decoder", {})
    config = source.text_config
    past = inputs["past_key_values.0.key"]
    kinds = {node.op_type for node in model.graph.node}
    dtype: Literal["float32", "float16"] = "float32"
    if past.type.tensor_type.elem_type == TensorProto.FLOAT16:
        dtype = "float16"
    heads = decoder.get("num_attention_heads") or config.get("num_attention_heads")
    hidden = decoder.get("hidden_size") or config.get("hidden_size")
    return ModelSpec(
        architecture=(source.config.get("architectures") or [section.get("type", "unknown")])[0],
        layers=layers,
        hidden=_known(source, "hidden_size", hidden),
        vocabulary=_known(source, "vocab_size", _dim(logits, -1) or section.get("vocab_size")),
        context=_known(
            source,
            "context_length",
            section.get("context_length") or config.get("max_position_embeddings"),
        ),
        kv_heads=_known(
            source, "num_key_value_heads", _dim(past, 1) or decoder.get("num_key_value_heads")
        ),
        head_size=_known(
            source,
            "head_size",
            _dim(past, 3) or decoder.get("head_size") or (hidden and heads and hidden // heads),
        ),
        precision=graph_precision(model),
        cache="in_place" if "GroupQueryAttention" in kinds else "concat",
        dtype=dtype,
    )


def probe_layers(kinds: Sequence[object], layers: int) -> int:
    """How many of the first layers include every kind of layer; at least two."""
    first = [kinds.index(kind) + 1 for kind in set(kinds)]
    return min(max([2, *first]), layers)


def graph_precision(model: ModelProto) -> Precision:
    """The precision of a graph's weights."""
    bits = {attribute(n, "bits") for n in model.graph.node if n.op_type == "MatMulNBits"}
    if bits >= {4, 8}:
        return "int4-mixed"
    for width, name in _BITS.items():
        if width in bits:
            return name
    past = next(e for e in model.graph.input if e.name.startswith("past_key_values."))
    return "fp16" if past.type.tensor_type.elem_type == TensorProto.FLOAT16 else "fp32"


def _dim(entry: ValueInfoProto, at: int) -> int:
    """A constant dimension; 0 if it is not constant."""
    dims = entry.type.tensor_type.shape.dim
    return int(dims[at].dim_value) if dims else 0


def _known(source: Source, name: str, found: object) -> int:
    if not isinstance(found, int) or found < 1:
        raise ExportError(
            f"{source.folder}: neither its graph nor its configuration gives its {name}. "
            "Copy the model folder again, or export it again."
        )
    return found
