"""From two models to one bundle: build, cut, check, and only then write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_edge.bundle import (
    COVERAGE,
    Manifest,
    Precision,
    write_manifest,
)
from mirror_edge.errors import ExportError, MissingExtraError, OptionError
from mirror_edge.export import sample
from mirror_edge.export.attention import sliding_window
from mirror_edge.export.draft_head import narrowed, refuse_size
from mirror_edge.export.early_exit import EARLY_EXIT
from mirror_edge.export.exit_head import (
    DEFAULT_RANK,
    RANKS,
    Correction,
    Exit,
)
from mirror_edge.export.exit_layer import rollout_bytes
from mirror_edge.export.exit_tokens import exit_tokens as named_tokens
from mirror_edge.export.facts import graph_precision
from mirror_edge.export.fixed import FIXED_KINDS, unfit
from mirror_edge.export.output import refuse_taken, refuse_without_space, whole_folder
from mirror_edge.export.pieces import cut_draft, cut_own_draft, cut_target, fix_draft
from mirror_edge.export.source import OnProgress, Source, locate
from mirror_edge.export.streams import Streams
from mirror_edge.export.tokenizer import (
    read_tokenizer,
    refuse_different,
    write_files,
)
from mirror_edge.export.whole import (
    DEFAULT_PRECISION,
    Whole,
    against_checkpoint,
    disk_needed,
    load,
    whole,
)
from mirror_edge.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from mirror_edge.export.calibration import Calibration
    from mirror_edge.export.texts import Document

__all__ = ["Exported", "chosen_layer", "run"]

_NO_TREES = (
    "was written by optimum, whose graphs cannot take trees of guesses. "
    "Give it as a checkpoint or as a folder in ONNX Runtime GenAI's format."
)


@dataclass(frozen=True)
class Exported:
    """A finished bundle, and how far its graphs are from the models they come from.

    Deviations are the worst row's root mean square error, in standard deviations of the logits.
    """

    folder: Path
    manifest: Manifest
    deviations: dict[str, float]
    notes: tuple[str, ...]
    """What the user should know beside."""
    calibration: Calibration | None
    """What was found on the calibration text, if any was given."""


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
    calibrate: Sequence[str | Path],
    exit_rank: int | None,
    draft_for: str | None,
    draft_vocabulary: int | None,
    force: bool,
    on_progress: OnProgress,
) -> Exported:
    """See `mirror_edge.export.export`."""
    output = Path(output).expanduser()
    refuse_taken(output, force=force)
    documents = _calibration_texts(calibrate, exit_rank, correction)
    source = locate(target, "TARGET", on_progress)
    _refuse_bundle(source, f"TARGET {target}")
    tokenizer = read_tokenizer(source)
    _refuse_other_precision(source, precision, "--precision")
    if known := source.text_config.get("num_hidden_layers"):
        chosen_layer(exit_layer, known)
    needed = disk_needed(source, precision or DEFAULT_PRECISION)
    early = str(draft) == EARLY_EXIT and not Path(EARLY_EXIT).exists()
    if early and source.kind == "optimum":
        raise OptionError(f"--draft {EARLY_EXIT}: TARGET {_NO_TREES}")
    guide = None if draft is None or early else _located_draft(draft, tokenizer, on_progress)
    if guide is not None:
        _refuse_other_precision(guide, draft_precision, "--draft-precision")
        if known := guide.text_config.get("vocab_size"):
            refuse_size(draft_vocabulary, known)
        draft_precision = draft_precision or precision
        once = disk_needed(guide, draft_precision or DEFAULT_PRECISION)
        needed += once if draft_vocabulary is None else 2 * once
    for option, asked in (("precision", draft_precision), ("vocabulary", draft_vocabulary)):
        if guide is None and asked is not None:
            raise OptionError(f"--draft-{option} {asked}: {_no_draft(early=early)}.")
    _refuse_fixed(draft_for, guide, early=early)
    if draft_for is not None and guide is not None:
        needed += disk_needed(guide, "fp32")
    with whole_folder(output) as folder:
        refuse_without_space(output, needed)

        one = whole("target", source, tokenizer, folder / "target", precision, on_progress)
        write_files(source, tokenizer, folder, one.spec.context)
        on_progress("Checking the target", 0.0)
        deviations, notes = against_checkpoint(one), one.notes
        on_progress("Checking the target", 1.0)
        two = None
        if guide is not None:
            two = whole("draft", guide, tokenizer, folder / "draft", draft_precision, on_progress)
            on_progress("Checking the draft", 0.0)
            deviations |= against_checkpoint(two)
            on_progress("Checking the draft", 1.0)
            notes += two.notes
            two, off = narrowed(two, draft_vocabulary)
            deviations |= off

        def tokens(counts: NDArray[np.float64] | None) -> NDArray[np.int64] | None:
            return named_tokens(exit_tokens, tokenizer, source, one.spec.vocabulary, counts)

        layer, found = chosen_layer(exit_layer, one.spec.layers), None
        if documents:
            from mirror_edge.export.calibration import calibrate as calibrated

            found = calibrated(
                one,
                Text.read(folder),
                documents,
                rank=exit_rank or DEFAULT_RANK,
                layer=exit_layer,
                tokens=tokens,
                rollout=None if early else _rollout(two),
                on_progress=on_progress,
            )
            (folder / COVERAGE).write_text(json.dumps(found.content(), indent=2) + "\n")
            leave = found.exit
        else:
            leave = Exit(layer, tokens(None), correction)

        on_progress("Cutting the graphs", 0.0)
        target_spec, logits, off = cut_target(one, leave)
        deviations |= off
        on_progress("Cutting the graphs", 0.5)
        draft_spec = None
        if two is not None:
            draft_spec, off = cut_draft(two, Streams.read(two.source.folder))
        elif early:
            draft_spec, off = cut_own_draft(one, leave, logits)
        deviations |= off
        if draft_for is not None and two is not None and draft_spec is not None:
            exact = two
            if two.spec.precision != "fp32":
                at = folder / "exact"
                exact = whole("draft", two.source, tokenizer, at, "fp32", on_progress)
                exact, _ = narrowed(exact, draft_vocabulary)
            draft_spec, off = fix_draft(folder, target_spec, draft_spec, exact)
            deviations |= off
        on_progress("Cutting the graphs", 1.0)

        on_progress("Writing the bundle", 0.0)
        manifest = write_manifest(folder, output.name, target_spec, draft_spec)
    on_progress("Writing the bundle", 1.0)
    return Exported(output, manifest, deviations, notes, found)


def _located_draft(draft: str | Path, tokenizer: Tokenizer, on_progress: OnProgress) -> Source:
    source = locate(draft, "--draft", on_progress)
    _refuse_bundle(source, f"--draft {draft}")
    if source.kind == "optimum":
        raise OptionError(f"--draft {draft}: {_NO_TREES}")
    refuse_different(tokenizer, read_tokenizer(source))
    streams, config = Streams.read(source.folder), source.config
    if streams is not None and "num_hidden_layers" in config and "hidden_size" in config:
        streams.refuse_unless_for(source.folder, config["num_hidden_layers"], config["hidden_size"])
    return source


def _refuse_bundle(source: Source, option: str) -> None:
    if source.kind == "bundle":
        raise OptionError(f"{option}: is a bundle already. With --format coreml it is converted.")


def _no_draft(*, early: bool) -> str:
    return "the draft is the target's own" if early else "there is no --draft to apply to"


def _refuse_fixed(draft_for: str | None, draft: Source | None, *, early: bool) -> None:
    if draft_for is None:
        return
    option = f"--draft-for {draft_for}"
    if draft_for not in FIXED_KINDS:
        raise OptionError(f"{option}: must be one of {', '.join(FIXED_KINDS)}.")
    if draft is None:
        raise OptionError(f"{option}: {_no_draft(early=early)}.")
    if draft.graph is not None and graph_precision(load(draft.graph)) != "fp32":
        raise OptionError(
            f"{option}: {draft.folder} is an ONNX graph with quantised weights, and NPU graphs are "
            "made from those in float32. Give the checkpoint."
        )
    if window := sliding_window(draft):
        raise unfit(f"attention that looks back through a window of {window} tokens")


def _rollout(draft: Whole | None) -> float:
    if draft is None:
        return 0.0
    streams = Streams.read(draft.source.folder)
    return rollout_bytes(draft.model, 0 if streams is None else streams.count)


def chosen_layer(exit_layer: int | None, layers: int) -> int:
    """Where a target of so many layers is cut."""
    if layers < 2:
        raise ExportError(
            "TARGET: has a single layer, and a target is cut between two. Choose a larger model."
        )
    if exit_layer is None:
        return layers // 2
    if not 1 <= exit_layer < layers:
        raise OptionError(
            f"--exit-layer {exit_layer}: must be from 1 to {layers - 1} "
            f"for a target of {layers} layers."
        )
    return exit_layer


def _refuse_other_precision(source: Source, precision: Precision | None, option: str) -> None:
    if precision is None or source.graph is None:
        return
    there = graph_precision(load(source.graph))
    if there != precision:
        raise OptionError(
            f"{option} {precision}: {source.folder} is an ONNX graph in {there} already, which "
            "cannot be changed. Leave the option out or give the checkpoint."
        )


def _calibration_texts(
    files: Sequence[str | Path], rank: int | None, correction: Correction | None
) -> list[Document]:
    """Some documents of the calibration files; none where there are no files."""
    if not files:
        if rank is not None:
            raise OptionError(f"--exit-rank {rank}: there is no --calibrate text to fit it on.")
        return []
    if rank is not None and rank not in RANKS:
        raise OptionError(f"--exit-rank {rank}: must be from {RANKS[0]} to {RANKS[-1]}.")
    if correction is not None:
        raise OptionError("correction: is fitted by --calibrate. Give one of the two.")
    if find_spec("torch") is None:
        raise MissingExtraError(
            "--calibrate: needs the package torch, which is not installed. "
            "Install it with: pip install 'mirror-edge[export]'"
        )
    return sample.draw([Path(file).expanduser() for file in files])
