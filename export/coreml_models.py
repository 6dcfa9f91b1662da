"""The two models of a Core ML export, found and checked against its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mirror_edge.bundle import Precision
from mirror_edge.errors import OptionError
from mirror_edge.export import blueprints, check
from mirror_edge.export.early_exit import EARLY_EXIT, is_early_exit
from mirror_edge.export.exit_layer import chosen_layer
from mirror_edge.export.options import ExportOptions
from mirror_edge.export.origins import layers_of, longest_context
from mirror_edge.export.source import OnProgress, Source, locate
from mirror_edge.export.tokenizer import read_tokenizer, refuse_different

__all__ = ["CoreMLModels", "bytes_needed", "find_models"]

_CONTEXT = 4096
"""The default: attention runs over the whole cache at every step, so a long one always costs."""
_COPIES = 4
"""Copies of the weights on disk at the peak: each function alone, and all of them joined."""
_WEIGHTS = {".safetensors", ".bin", ".data"}


@dataclass(frozen=True)
class CoreMLModels:
    """The sources of a bundle, and the context it is made for, in tokens."""

    target: Source
    draft: Source | None
    tokenizer: Tokenizer
    context: int
    notes: tuple[str, ...]


def find_models(
    target: str | Path, draft: str | Path | None, options: ExportOptions, on_progress: OnProgress
) -> CoreMLModels:
    """Find both models, downloading those that are names on the hub.

    Raises:
        OptionError: for an option that these models cannot honour.
        ExportError: for a model that cannot be a bundle's, or a draft with another tokenizer.
    """
    source, guide = locate(target, "TARGET", on_progress), None
    tokenizer = read_tokenizer(source)
    chosen_layer(options.exit_layer, layers_of(source, "target"))
    context, notes = _context(options.context, longest_context(source, "target"))
    if is_early_exit(draft):
        raise OptionError(f"--draft {EARLY_EXIT}: is for --format onnx. Give a draft model.")
    if draft is not None:
        guide = locate(draft, "--draft", on_progress)
        refuse_different(tokenizer, read_tokenizer(guide))
        layers_of(guide, "draft")
    elif options.draft_precision is not None:
        raise OptionError(
            f"--draft-precision {options.draft_precision}: there is no --draft to apply to."
        )
    return CoreMLModels(source, guide, tokenizer, context, notes)


def bytes_needed(models: CoreMLModels, options: ExportOptions) -> int:
    """About how many bytes of disk the export takes at its peak."""
    needed = _disk_needed(models.target, options.target_precision)
    if models.draft is not None:
        needed += _disk_needed(models.draft, options.guide_precision)
    return needed


def _disk_needed(source: Source, precision: Precision) -> int:
    """About how many bytes of disk the export of one model takes at its peak."""
    files = [path for path in source.folder.rglob("*") if path.is_file()]
    stored = sum(path.stat().st_size for path in files if path.suffix in _WEIGHTS)
    return int(_COPIES * stored / source.weight_bytes * blueprints.BYTES[precision])


def _context(asked: int | None, most: int) -> tuple[int, tuple[str, ...]]:
    """The context of the bundle, and a note on it for the user."""
    if asked is not None and not check.SHORTEST <= asked <= most:
        raise OptionError(
            f"--context {asked}: must be from {check.SHORTEST} to {most}, the target's own."
        )
    length = asked or min(_CONTEXT, most)
    if asked or length == most:
        return length, ()
    note = f"the context is {length:,} of the target's {most:,} tokens; --context changes that."
    return length, (note,)
