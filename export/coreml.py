"""From two models to a bundle of Core ML packages, checked by computing the written programs.

A model is read into the decoder of `mirror_edge.export.decoder`, which is held against its source;
its weights are rounded in place; the packages are made of it; and the programs in them, evaluated,
are held against the rounded decoder.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mirror_edge.bundle import COVERAGE, Bundle, ModelSpec, Precision, write_manifest
from mirror_edge.errors import OptionError
from mirror_edge.export import blueprints, check, coreml_check
from mirror_edge.export.decoder import Decoder
from mirror_edge.export.early_exit import EARLY_EXIT
from mirror_edge.export.exit_head import Correction, Exit
from mirror_edge.export.exit_tokens import exit_tokens as named_tokens
from mirror_edge.export.origins import (
    Role,
    layers_of,
    longest_context,
    read_decoder,
    read_exit,
    read_streams,
    source_logits,
)
from mirror_edge.export.output import refuse_taken, refuse_without_space, whole_folder
from mirror_edge.export.pipeline import Exported, chosen_layer
from mirror_edge.export.source import OnProgress, Source, locate
from mirror_edge.export.stream_rows import stream_logits
from mirror_edge.export.tokenizer import (
    read_tokenizer,
    refuse_different,
    sample_ids,
    write_files,
)
from mirror_edge.export.whole import DEFAULT_PRECISION
from mirror_edge.runtimes.coreml.library import coremltools

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Ids = NDArray[np.int64]
    Rows = NDArray[np.float32]

__all__ = ["run"]

_CONTEXT = 4096
"""Unless told: attention runs over the whole cache at every step, so a long one always costs."""
_SAMPLE_TOKENS = 48
_COPIES = 4
"""Of the weights on disk at the peak: every function alone, and all of them joined."""


@dataclass(frozen=True)
class _Model:
    """A model whose weights are rounded, and what it says to a text."""

    decoder: Decoder
    spec: ModelSpec
    ids: Ids
    deviations: dict[str, float]


def run(
    target: str | Path,
    draft: str | Path | None,
    output: str | Path,
    *,
    exit_layer: int | None,
    precision: Precision | None,
    draft_precision: Precision | None,
    exit_tokens: Sequence[int] | None,
    correction: Correction | None,
    context: int | None,
    force: bool,
    on_progress: OnProgress,
) -> Exported:
    """See `mirror_edge.export.export`."""
    output = Path(output).expanduser()
    refuse_taken(output, force=force)
    source, guide = locate(target, "TARGET", on_progress), None
    tokenizer = read_tokenizer(source)
    layer = chosen_layer(exit_layer, layers_of(source, "target"))
    precision = precision or DEFAULT_PRECISION
    most = longest_context(source, "target")
    length, notes = _context(context, most)
    needed = _disk_needed(source, precision)
    if str(draft) == EARLY_EXIT and not Path(EARLY_EXIT).exists():
        raise OptionError(f"--draft {EARLY_EXIT}: is for --format onnx. Give a draft model.")
    if draft is not None:
        guide = locate(draft, "--draft", on_progress)
        refuse_different(tokenizer, read_tokenizer(guide))
        layers_of(guide, "draft")
        needed += _disk_needed(guide, draft_precision or precision)
    elif draft_precision is not None:
        raise OptionError(f"--draft-precision {draft_precision}: there is no --draft to apply to.")
    coremltools()  # or a refusal, before the models are read
    with whole_folder(output) as folder:
        refuse_without_space(output, needed)
        one = _read("target", source, tokenizer, length, precision, on_progress)
        asked = (exit_layer, exit_tokens, correction)
        inherited = read_exit(source) if asked == (None, None, None) else None
        named = named_tokens(exit_tokens, tokenizer, source, one.spec.vocabulary)
        leave = inherited or Exit(layer, named, correction)
        exits = blueprints.exit_head(one.decoder, leave, precision)
        target_spec, package = blueprints.write_target(
            one.decoder,
            one.spec,
            leave.layer,
            exits,
            folder,
            lambda share: on_progress("Converting the target", share),
        )
        packages, draft_spec = {target_spec.prefix: package}, None
        expected, deviations = _logits(one.decoder, [one.ids]), one.deviations
        text = one.ids
        del one
        if guide is not None:
            length = min(length, longest_context(guide, "draft"))
            precision = draft_precision or precision
            two = _read("draft", guide, tokenizer, length, precision, on_progress)
            streams = read_streams(guide)
            if streams is not None:
                streams.refuse_unless_for(guide.folder, two.spec.layers, two.spec.hidden)
            draft_spec, more = blueprints.write_draft(
                two.decoder,
                two.spec,
                streams,
                folder,
                lambda share: on_progress("Converting the draft", share),
            )
            packages |= more
            words, tree = two.ids, check.tree_after(two.ids)
            guessed = _logits(two.decoder, [words, *tree.texts(words)])
            if streams is not None:
                with torch.no_grad():
                    guessed.append(stream_logits(two.decoder, streams, words))
            deviations |= two.deviations
            del two
        write_files(source, tokenizer, folder, target_spec.model.context)
        if inherited and (source.folder / COVERAGE).is_file():
            shutil.copyfile(source.folder / COVERAGE, folder / COVERAGE)
        manifest = write_manifest(folder, output.name, target_spec, draft_spec, packages)

        bundle = Bundle(folder, manifest)
        on_progress("Checking the programs", 0.0)
        deviations["target, evaluated"] = coreml_check.check_target(bundle, text, expected[0])
        deviations["exit head, evaluated"] = coreml_check.check_exit(bundle, exits)
        on_progress("Checking the programs", 0.6)
        if draft_spec is not None:
            found = coreml_check.check_draft(bundle, words, tree, guessed)
            deviations["draft with trees, evaluated"] = found
        on_progress("Checking the programs", 1.0)
    return Exported(output, manifest, deviations, notes, None)


def _read(
    role: Role,
    source: Source,
    tokenizer: Tokenizer,
    context: int,
    precision: Precision,
    on_progress: OnProgress,
) -> _Model:
    """Read a model, hold it against its source, and round its weights."""
    stage = f"Reading the {role}"
    on_progress(stage, 0.0)
    decoder = read_decoder(source, role, blueprints.capacity(context, role))
    spec = blueprints.model_spec(decoder, context, precision, role)
    ids = sample_ids(tokenizer, min(_SAMPLE_TOKENS, context - check.TREE_NODES), spec.vocabulary)
    on_progress(stage, 0.3)
    exact = _logits(decoder, [ids])[0]
    name = f"the {role} as read"
    wanted = source_logits(source, role, ids)
    deviations = {name: check.compare(name, exact, wanted, coreml_check.limit("float32"))}
    on_progress(stage, 0.7)
    blueprints.round_weights(decoder, precision, role)
    if precision in {"int4", "int8"}:
        name = f"the {role} in {precision}"
        rounded = _logits(decoder, [ids])[0]
        deviations[name] = check.compare(name, rounded, exact, check.source_limit(spec))
    on_progress(stage, 1.0)
    return _Model(decoder, spec, ids, deviations)


def _logits(decoder: Decoder, texts: Sequence[Ids]) -> list[Rows]:
    with torch.no_grad():
        return [decoder(torch.from_numpy(text)[None])[0].numpy() for text in texts]


def _context(asked: int | None, most: int) -> tuple[int, tuple[str, ...]]:
    """The context of the bundle, and what to say of it."""
    if asked is not None and not check.SHORTEST <= asked <= most:
        raise OptionError(
            f"--context {asked}: must be from {check.SHORTEST} to {most}, the target's own."
        )
    length = asked or min(_CONTEXT, most)
    if asked or length == most:
        return length, ()
    note = f"the context is {length:,} of the target's {most:,} tokens; --context sets it."
    return length, (note,)


def _disk_needed(source: Source, precision: Precision) -> int:
    """About how many bytes of disk the export of one model takes at its peak."""
    files = [path for path in source.folder.rglob("*") if path.is_file()]
    stored = sum(path.stat().st_size for path in files if path.suffix in _WEIGHTS)
    width = 4 if "32" in str(source.config.get("dtype", source.config.get("torch_dtype"))) else 2
    return int(_COPIES * stored / width * blueprints.BYTES[precision])


_WEIGHTS = {".safetensors", ".bin", ".data"}
