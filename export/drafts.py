"""Drafts to train: fresh ones, and those read from and written as checkpoints."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from mirror_edge.errors import ExportError, OptionError
from mirror_edge.export.quiet import without_bars
from mirror_edge.export.recipe import DraftShape, Recipe
from mirror_edge.export.source import Source
from mirror_edge.export.streaming import StreamingDraft
from mirror_edge.export.streams import STREAMS_FILE, Streams
from mirror_edge.export.tokenizer import write_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Draft = PreTrainedModel | StreamingDraft
"""A draft without or with streams."""

__all__ = ["Draft", "decoder", "fresh", "load_model", "plain", "replaced_streams", "save", "tuned"]


def load_model(source: Source, option: str, dtype: torch.dtype) -> PreTrainedModel:
    """The checkpoint that `option` names.

    Raises:
        OptionError: for a folder of graphs.
        ExportError: when transformers cannot load it.
    """
    if source.kind != "checkpoint":
        raise OptionError(
            f"{option} {source.folder}: is a folder of ONNX graphs, which cannot be used for "
            "training. Give the checkpoint that they were made from."
        )
    try:
        with warnings.catch_warnings(), without_bars():
            warnings.simplefilter("ignore")  # third-party code on import
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=dtype, local_files_only=True
            )
    except Exception as error:
        raise ExportError(
            f"{option} {source.folder}: cannot be loaded by transformers "
            f"({type(error).__name__}: {error}). Copy the model folder again."
        ) from error
    # The model's own sampling settings would affect what it generates.
    model.generation_config = GenerationConfig()
    return model


def decoder(
    shape: DraftShape, vocabulary: int, context: int, named: Mapping[str, int | None]
) -> LlamaForCausalLM:
    """An untrained Llama of this `shape`; `named` are the ids of its special tokens."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )
    for name, token in named.items():
        setattr(config, name, token)
    return LlamaForCausalLM(config)


def fresh(shape: DraftShape, target: PreTrainedModel, recipe: Recipe) -> Draft:
    """An untrained draft for `target`, whose embeddings start as a projection of the target's."""
    config: Any = target.config
    named = {name: getattr(config, name, None) for name in _NAMED}
    model = decoder(shape, config.vocab_size, config.max_position_embeddings, named)
    taught: Any = target.get_input_embeddings()
    own: Any = model.get_input_embeddings()
    if shape.hidden < taught.embedding_dim:
        with torch.no_grad():
            own.weight.copy_(_narrowed(taught.weight.float(), shape.hidden))
    return _streaming(model, recipe)


def _narrowed(table: torch.Tensor, hidden: int) -> torch.Tensor:
    """`table` [V, H] projected on its `hidden` principal directions, which keeps angles."""
    directions: torch.Tensor = torch.linalg.eigh(table.T @ table)[1]
    return table @ directions[:, -hidden:]


_NAMED = ("bos_token_id", "eos_token_id", "pad_token_id")


def tuned(source: Source, recipe: Recipe) -> Draft:
    """The checkpoint `source` to continue training, with its streams if they fit `recipe`.

    Raises:
        ExportError: as `load_model` and `StreamingDraft`.
        OptionError: as both.
    """
    model = load_model(source, "--draft", torch.float32)
    found = Streams.read(source.folder)
    if found is not None and _as_asked(found, recipe):
        draft: Draft = StreamingDraft.of(model, found, source.folder)
    else:
        draft = _streaming(model, recipe)
    if recipe.lossless:
        model.requires_grad_(False)
    return draft


def replaced_streams(source: Source, recipe: Recipe) -> list[str]:
    """A note on streams of the checkpoint that do not fit `recipe`; none where they do."""
    found = Streams.read(source.folder)
    if found is None or _as_asked(found, recipe):
        return []
    return [
        f"{source.folder} had {found.count} streams of rank {found.down.shape[1]} through "
        f"{found.layers} layers. They were replaced, because others were asked for."
    ]


def _as_asked(found: Streams, recipe: Recipe) -> bool:
    asked = (recipe.streams, recipe.stream_layers, recipe.stream_rank)
    return (found.count, found.layers, found.down.shape[1]) == asked


def _streaming(model: PreTrainedModel, recipe: Recipe) -> Draft:
    if not recipe.streams:
        return model
    config: Any = model.config
    depth = int(config.num_hidden_layers)
    if recipe.stream_layers > depth:
        raise OptionError(
            f"--stream-layers {recipe.stream_layers}: must be 1 to {depth}, the draft's own layers."
        )
    return StreamingDraft(
        model, streams=recipe.streams, layers=recipe.stream_layers, rank=recipe.stream_rank
    )


def plain(draft: Draft) -> PreTrainedModel:
    """The model without its streams."""
    return draft.model if isinstance(draft, StreamingDraft) else draft


def save(
    draft: Draft,
    folder: Path,
    target: Source,
    tokenizer: Tokenizer,
    *,
    unchanged: Source | None = None,
) -> None:
    """Write a Hugging Face folder with the target's tokenizer.

    The files of an `unchanged` checkpoint are copied, and only the streams are new.
    """
    model = plain(draft)
    if unchanged is not None:
        for file in unchanged.folder.iterdir():
            if file.is_file() and file.name != STREAMS_FILE:
                shutil.copyfile(file, folder / file.name)
    else:
        with without_bars():
            model.save_pretrained(folder)
    if isinstance(draft, StreamingDraft):
        draft.stored_streams().write(folder)
    write_files(target, tokenizer, folder, model.config.max_position_embeddings)
