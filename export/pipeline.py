"""From two models to one bundle: build, calibrate, cut, check, and only then write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_edge.bundle import COVERAGE, DraftSpec, Manifest, TargetSpec, write_manifest
from mirror_edge.errors import MissingExtraError
from mirror_edge.export import sample
from mirror_edge.export.draft_head import narrowed
from mirror_edge.export.exit_head import Exit
from mirror_edge.export.exit_layer import chosen_layer, rollout_bytes
from mirror_edge.export.exit_tokens import exit_tokens
from mirror_edge.export.full_graph import FullGraph, against_checkpoint, full_graph
from mirror_edge.export.models import Models, bytes_needed, find_models
from mirror_edge.export.options import ExportOptions
from mirror_edge.export.output import refuse_taken, refuse_without_space, whole_folder
from mirror_edge.export.pieces import cut_draft, cut_own_draft, cut_target, fix_draft
from mirror_edge.export.source import OnProgress
from mirror_edge.export.streams import Streams
from mirror_edge.export.tokenizer import write_files
from mirror_edge.text import Text

if TYPE_CHECKING:
    from mirror_edge.export.calibration import Calibration
    from mirror_edge.export.texts import Document

__all__ = ["Exported", "run"]


@dataclass(frozen=True)
class Exported:
    """A finished bundle, and how far its graphs are from the models they come from.

    Deviations are the worst row's root mean square error, in standard deviations of the logits.
    """

    folder: Path
    manifest: Manifest
    deviations: dict[str, float]
    notes: tuple[str, ...]
    """What else the user should know."""
    calibration: Calibration | None
    """What was found on the calibration text, if any was given."""


@dataclass(frozen=True)
class _Built:
    """The full graphs of both models, held against their checkpoints."""

    target: FullGraph
    draft: FullGraph | None
    deviations: dict[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Cut:
    """The written graphs, as the manifest describes them."""

    target: TargetSpec
    draft: DraftSpec | None
    deviations: dict[str, float]


def run(
    target: str | Path,
    draft: str | Path | None,
    output: Path,
    options: ExportOptions,
    on_progress: OnProgress,
) -> Exported:
    """See `mirror_edge.export.export`."""
    refuse = partial(refuse_taken, output, force=options.force)
    refuse()
    documents = _documents(options.calibrate)
    models = find_models(target, draft, options, on_progress)
    with whole_folder(output, refuse) as folder:
        refuse_without_space(output, bytes_needed(models, options))
        built = _build(models, folder, options, on_progress)
        leave, found = _choose_exit(models, built, folder, documents, options, on_progress)
        cut = _cut(models, built, leave, folder, options, on_progress)
        on_progress("Writing the bundle", 0.0)
        manifest = write_manifest(folder, output.name, cut.target, cut.draft)
    on_progress("Writing the bundle", 1.0)
    return Exported(output, manifest, built.deviations | cut.deviations, built.notes, found)


def _documents(files: Sequence[str | Path]) -> list[Document]:
    """Some documents of the calibration `files`; none where there are no files."""
    if not files:
        return []
    if find_spec("torch") is None:
        raise MissingExtraError(
            "--calibrate: needs the package torch, which is not installed. "
            "Install it with: pip install 'mirror-edge[export]'"
        )
    return sample.draw([Path(file).expanduser() for file in files])


def _build(models: Models, folder: Path, options: ExportOptions, on_progress: OnProgress) -> _Built:
    """Build and check both full graphs, and write the tokenizer's files."""
    width, at = options.target_precision, folder / "target"
    target = full_graph("target", models.target, models.tokenizer, at, width, on_progress)
    write_files(models.target, models.tokenizer, folder, target.spec.context)
    deviations = _checked(target, on_progress)
    if models.draft is None:
        return _Built(target, None, deviations, target.notes)
    width, at = options.guide_precision, folder / "draft"
    draft = full_graph("draft", models.draft, models.tokenizer, at, width, on_progress)
    deviations |= _checked(draft, on_progress)
    draft, off = narrowed(draft, options.draft_vocabulary)
    return _Built(target, draft, deviations | off, target.notes + draft.notes)


def _checked(model: FullGraph, on_progress: OnProgress) -> dict[str, float]:
    on_progress(f"Checking the {model.role}", 0.0)
    deviations = against_checkpoint(model)
    on_progress(f"Checking the {model.role}", 1.0)
    return deviations


def _choose_exit(
    models: Models,
    built: _Built,
    folder: Path,
    documents: Sequence[Document],
    options: ExportOptions,
    on_progress: OnProgress,
) -> tuple[Exit, Calibration | None]:
    """The exit as asked for; given `documents`, one fitted to them, whose coverage is written."""
    target = built.target
    layer = chosen_layer(options.exit_layer, target.spec.layers)
    tokens = partial(
        exit_tokens, options.exit_tokens, models.tokenizer, models.target, target.spec.vocabulary
    )
    if not documents:
        return Exit(layer, tokens(), options.correction), None
    from mirror_edge.export.calibration import calibrate

    found = calibrate(
        target,
        Text.read(folder),
        documents,
        rank=options.fitted_rank,
        layer=options.exit_layer,
        tokens=tokens,
        rollout=None if models.early else _rollout(built.draft),
        on_progress=on_progress,
    )
    (folder / COVERAGE).write_text(json.dumps(found.content(), indent=2) + "\n")
    return found.exit, found


def _rollout(draft: FullGraph | None) -> float:
    """Bytes of weights that the draft reads in a rollout; none without a draft model."""
    if draft is None:
        return 0.0
    streams = Streams.read(draft.source.folder)
    return rollout_bytes(draft.model, 0 if streams is None else streams.count)


def _cut(
    models: Models,
    built: _Built,
    leave: Exit,
    folder: Path,
    options: ExportOptions,
    on_progress: OnProgress,
) -> _Cut:
    """Write the graphs of the bundle, each checked against the full graph it comes from."""
    on_progress("Cutting the graphs", 0.0)
    target, logits, deviations = cut_target(built.target, leave)
    on_progress("Cutting the graphs", 0.5)
    draft = None
    if built.draft is not None:
        draft, off = cut_draft(built.draft, Streams.read(built.draft.source.folder))
        deviations |= off
        if options.draft_for is not None:
            exact = _exact(models, built.draft, folder, options, on_progress)
            draft, off = fix_draft(folder, target, draft, exact)
            deviations |= off
    elif models.early:
        draft, off = cut_own_draft(built.target, leave, logits)
        deviations |= off
    on_progress("Cutting the graphs", 1.0)
    return _Cut(target, draft, deviations)


def _exact(
    models: Models, draft: FullGraph, folder: Path, options: ExportOptions, on_progress: OnProgress
) -> FullGraph:
    """The draft's full graph in float32, from which fixed shapes are made."""
    if draft.spec.precision == "fp32":
        return draft
    exact = full_graph(
        "draft", draft.source, models.tokenizer, folder / "exact", "fp32", on_progress
    )
    return narrowed(exact, options.draft_vocabulary)[0]
