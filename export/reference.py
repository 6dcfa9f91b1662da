"""The models that exported graphs are compared with: the source, and the full graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from mirror_edge.bundle import ModelSpec
from mirror_edge.errors import ExportError
from mirror_edge.export.quiet import quiet
from mirror_edge.export.source import Source, install_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]
    Ids = NDArray[np.int64]

__all__ = ["checkpoint_logits", "graph_logits", "numpy_type", "session", "uncached"]


def numpy_type(spec: ModelSpec) -> type[np.float32] | type[np.float16]:
    """The type of hidden rows and caches."""
    return np.float32 if spec.dtype == "float32" else np.float16


def session(path: Path) -> ort.InferenceSession:
    """A session on the CPU.

    Raises:
        ExportError: for a graph that ONNX Runtime cannot load there.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"{path.name}: ONNX Runtime cannot load the graph on the CPU, so it cannot be checked: "
            f"{error}. Try another --precision."
        ) from error


def graph_logits(path: Path, spec: ModelSpec, texts: Sequence[Ids]) -> list[Rows]:
    """The logits of every row of `texts`, [length, vocabulary] each, by a full graph.

    Raises:
        ExportError: for a graph that does not run on the CPU.
    """
    graph = session(path)
    try:
        return [uncached(graph, spec, text)[0][0].astype(np.float32) for text in texts]
    except Exception as error:
        raise ExportError(
            f"the full graph of the {path.parent.name} does not run on the CPU, so it cannot "
            f"be checked, and this model is not supported: {error}"
        ) from error


def uncached(
    graph: ort.InferenceSession,
    spec: ModelSpec,
    text: Ids,
    outputs: Sequence[str] = ("logits",),
) -> list[NDArray[Any]]:
    """The `outputs` of a full graph for a whole text, from an empty cache."""
    wanted = {entry.name for entry in graph.get_inputs()}
    cache = np.zeros((1, spec.kv_heads, 0, spec.head_size), numpy_type(spec))
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": text[None],
        "attention_mask": np.ones((1, len(text)), np.int64),
        "position_ids": np.arange(len(text))[None],
    }
    feeds |= {name: cache for name in wanted if name.startswith("past_key_values.")}
    found: list[NDArray[Any]] = graph.run(
        list(outputs), {name: array for name, array in feeds.items() if name in wanted}
    )
    return found


def checkpoint_logits(
    source: Source, texts: Sequence[Ids], *, exact: bool, layers: int | None = None
) -> list[Rows]:
    """The logits of every row of `texts` by transformers (its first `layers` layers, if given).

    `exact` computes in float32, otherwise in the type that the checkpoint is stored in.

    Raises:
        ExportError: for a checkpoint that lacks weights, or that transformers cannot run.
        MissingExtraError: without torch or transformers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third-party code on import
            import torch
            from transformers import (
                MODEL_FOR_CAUSAL_LM_MAPPING,
                AutoConfig,
                AutoModelForCausalLM,
                AutoModelForImageTextToText,
            )
    except ImportError as error:
        raise install_line(error.name or "transformers") from error

    try:
        with quiet(), torch.no_grad():
            config = AutoConfig.from_pretrained(source.folder, local_files_only=True)
            if layers is not None:
                config.get_text_config().num_hidden_layers = layers
            known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
            kind: Any = AutoModelForCausalLM if known else AutoModelForImageTextToText
            model, loading = kind.from_pretrained(
                source.folder,
                config=config,
                output_loading_info=True,
                dtype=torch.float32 if exact else "auto",
                local_files_only=True,
                attn_implementation="eager",
            )
            if missing := sorted(loading["missing_keys"]):
                raise ExportError(
                    f"{source.folder}: {len(missing):,} of its weights are missing, such as "
                    f"{missing[0]}. Download the model again."
                )
            model.eval()
            return [
                model(torch.from_numpy(text)[None], use_cache=False).logits[0].float().numpy()
                for text in texts
            ]
    except ExportError:
        raise
    except Exception as error:
        said = shorten(str(error), 300, placeholder=" …").rstrip(".")
        raise ExportError(
            f"{source.folder}: transformers cannot run this model, so its graph cannot be checked "
            f"({type(error).__name__}: {said}). Copy the model folder again, or try another "
            "version of transformers."
        ) from error
