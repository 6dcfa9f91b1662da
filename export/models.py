"""The two models of an ONNX export, found and checked against its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mirror_edge.bundle import Precision
from mirror_edge.errors import OptionError
from mirror_edge.export.attention import sliding_window
from mirror_edge.export.draft_head import refuse_size
from mirror_edge.export.early_exit import EARLY_EXIT, is_early_exit
from mirror_edge.export.exit_layer import chosen_layer
from mirror_edge.export.facts import graph_precision
from mirror_edge.export.fixed import unfit
from mirror_edge.export.full_graph import disk_needed, load
from mirror_edge.export.options import ExportOptions
from mirror_edge.export.source import OnProgress, Source, locate
from mirror_edge.export.streams import Streams
from mirror_edge.export.tokenizer import read_tokenizer, refuse_different

__all__ = ["Models", "bytes_needed", "find_models"]

_WIDE_RESIDUALS = ("gemma2", "gemma3_text")
"""Models whose graphs keep residuals in float32, whatever the precision of their weights."""
_NO_TREES = (
    "was written by optimum, whose graphs cannot take trees of guesses. "
    "Give it as a checkpoint or as a folder in ONNX Runtime GenAI's format."
)


@dataclass(frozen=True)
class Models:
    """The sources of a bundle."""

    target: Source
    draft: Source | None
    """The draft model, if there is one."""
    early: bool
    """Whether the target's own early exit is the draft."""
    tokenizer: Tokenizer
    """The target's, which the draft shares."""


def find_models(
    target: str | Path, draft: str | Path | None, options: ExportOptions, on_progress: OnProgress
) -> Models:
    """Find both models, downloading those that are names on the hub.

    Raises:
        OptionError: for an option that these models cannot honour.
        ExportError: for a model that is incomplete or damaged, or a draft with another tokenizer.
    """
    source = locate(target, "TARGET", on_progress)
    _refuse_bundle(source, f"TARGET {target}")
    tokenizer = read_tokenizer(source)
    _refuse_other_precision(source, options.precision, "--precision")
    _refuse_halves(source, options.target_precision, "--precision")
    if known := source.text_config.get("num_hidden_layers"):
        chosen_layer(options.exit_layer, known)
    early = is_early_exit(draft)
    if early and source.kind == "optimum":
        raise OptionError(f"--draft {EARLY_EXIT}: TARGET {_NO_TREES}")
    guide = None
    if draft is None or early:
        _refuse_draft_options(options, early=early)
    else:
        guide = _find_draft(draft, tokenizer, options, on_progress)
    return Models(source, guide, early, tokenizer)


def bytes_needed(models: Models, options: ExportOptions) -> int:
    """About how many bytes of disk the export takes at its peak."""
    needed = disk_needed(models.target, options.target_precision)
    if models.draft is not None:
        once = disk_needed(models.draft, options.guide_precision)
        needed += once if options.draft_vocabulary is None else 2 * once
        needed += 0 if options.draft_for is None else disk_needed(models.draft, "fp32")
    return needed


def _find_draft(
    draft: str | Path, tokenizer: Tokenizer, options: ExportOptions, on_progress: OnProgress
) -> Source:
    source = locate(draft, "--draft", on_progress)
    _refuse_bundle(source, f"--draft {draft}")
    if source.kind == "optimum":
        raise OptionError(f"--draft {draft}: {_NO_TREES}")
    refuse_different(tokenizer, read_tokenizer(source))
    streams, config = Streams.read(source.folder), source.config
    if streams is not None and "num_hidden_layers" in config and "hidden_size" in config:
        streams.refuse_unless_for(source.folder, config["num_hidden_layers"], config["hidden_size"])
    _refuse_other_precision(source, options.draft_precision, "--draft-precision")
    _refuse_halves(source, options.guide_precision, "--draft-precision")
    if known := source.text_config.get("vocab_size"):
        refuse_size(options.draft_vocabulary, known)
    if options.draft_for is not None:
        _refuse_for_npus(source, f"--draft-for {options.draft_for}")
    return source


def _refuse_draft_options(options: ExportOptions, *, early: bool) -> None:
    """Refuse options for a draft model, as there is none."""
    why = "the draft is the target's own" if early else "there is no --draft to apply to"
    for option, given in (
        ("--draft-precision", options.draft_precision),
        ("--draft-vocabulary", options.draft_vocabulary),
        ("--draft-for", options.draft_for),
    ):
        if given is not None:
            raise OptionError(f"{option} {given}: {why}. Omit it.")


def _refuse_bundle(source: Source, option: str) -> None:
    if source.kind == "bundle":
        raise OptionError(f"{option}: is a bundle already. Only --format coreml converts bundles.")


def _refuse_other_precision(source: Source, precision: Precision | None, option: str) -> None:
    if precision is None or source.graph is None:
        return
    there = graph_precision(load(source.graph))
    if there != precision:
        raise OptionError(
            f"{option} {precision}: {source.folder} is an ONNX graph in {there} already, which "
            "cannot be changed. Omit the option, or give the checkpoint."
        )


def _refuse_halves(source: Source, precision: Precision, option: str) -> None:
    if precision == "fp16" and source.text_config.get("model_type") in _WIDE_RESIDUALS:
        raise OptionError(
            f"{option} fp16: {source.folder} is a model whose residuals have to stay in float32. "
            "Choose another precision."
        )


def _refuse_for_npus(draft: Source, option: str) -> None:
    """Refuse a draft that cannot have fixed shapes."""
    if draft.graph is not None and graph_precision(load(draft.graph)) != "fp32":
        raise OptionError(
            f"{option}: {draft.folder} is an ONNX graph with quantised weights, but NPU graphs are "
            "made from weights in float32. Give the checkpoint."
        )
    if window := sliding_window(draft):
        raise unfit(f"attention that looks back through a window of {window} tokens")
