"""From two models to a bundle of Core ML packages, checked by evaluating the written programs.

A model is read into the decoder of `mirror_edge.export.decoder`, which is compared with its source;
its weights are rounded in place; packages are made from it; and the programs in them, evaluated,
are compared with the rounded decoder.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mirror_edge.bundle import (
    COVERAGE,
    Bundle,
    DraftSpec,
    ModelSpec,
    Precision,
    TargetSpec,
    write_manifest,
)
from mirror_edge.export import blueprints, check, coreml_check
from mirror_edge.export.coreml_models import CoreMLModels, bytes_needed, find_models
from mirror_edge.export.decoder import Decoder
from mirror_edge.export.exit_head import Exit
from mirror_edge.export.exit_layer import chosen_layer
from mirror_edge.export.exit_tokens import exit_tokens
from mirror_edge.export.options import ExportOptions
from mirror_edge.export.origins import (
    Role,
    longest_context,
    read_decoder,
    read_exit,
    read_streams,
    source_logits,
)
from mirror_edge.export.output import refuse_taken, refuse_without_space, whole_folder
from mirror_edge.export.pipeline import Exported
from mirror_edge.export.programs import ExitHead
from mirror_edge.export.source import OnProgress, Source
from mirror_edge.export.stream_rows import stream_logits
from mirror_edge.export.tokenizer import sample_ids, write_files
from mirror_edge.packages import Package
from mirror_edge.runtimes.coreml.library import coremltools

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Ids = NDArray[np.int64]
    Rows = NDArray[np.float32]

__all__ = ["run"]

_SAMPLE_TOKENS = 48


@dataclass(frozen=True)
class _Model:
    """A model whose weights are rounded, and the text it is checked on."""

    decoder: Decoder
    spec: ModelSpec
    ids: Ids
    deviations: dict[str, float]


@dataclass(frozen=True)
class _Target:
    """The written target, and what its programs should compute."""

    spec: TargetSpec
    package: Package
    exit: ExitHead
    ids: Ids
    logits: Rows
    deviations: dict[str, float]


@dataclass(frozen=True)
class _Draft:
    """The written draft, and what its programs should compute."""

    spec: DraftSpec
    packages: dict[str, Package]
    ids: Ids
    tree: check.Tree
    logits: list[Rows]
    """As `coreml_check.check_draft` takes them."""
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
    models = find_models(target, draft, options, on_progress)
    coremltools()  # refuses now, rather than after the models are read, if it is missing
    with whole_folder(output, refuse) as folder:
        refuse_without_space(output, bytes_needed(models, options))
        inherited = _inherited_exit(models.target, options)
        one = _write_target(models, inherited, folder, options, on_progress)
        two = None if models.draft is None else _write_draft(models, folder, options, on_progress)
        write_files(models.target, models.tokenizer, folder, one.spec.model.context)
        if inherited and (models.target.folder / COVERAGE).is_file():
            shutil.copyfile(models.target.folder / COVERAGE, folder / COVERAGE)
        packages = {one.spec.prefix: one.package, **({} if two is None else two.packages)}
        draft_spec = None if two is None else two.spec
        manifest = write_manifest(folder, output.name, one.spec, draft_spec, packages)
        deviations = _check(Bundle(folder, manifest), one, two, on_progress)
    return Exported(output, manifest, deviations, models.notes, None)


def _inherited_exit(source: Source, options: ExportOptions) -> Exit | None:
    """The exit of a bundle that is converted, unless another one is asked for."""
    asked = (options.exit_layer, options.exit_tokens, options.correction)
    return read_exit(source) if asked == (None, None, None) else None


def _write_target(
    models: CoreMLModels,
    inherited: Exit | None,
    folder: Path,
    options: ExportOptions,
    on_progress: OnProgress,
) -> _Target:
    source, precision = models.target, options.target_precision
    one = _read("target", source, models.tokenizer, models.context, precision, on_progress)
    leave = inherited
    if leave is None:
        layer = chosen_layer(options.exit_layer, one.spec.layers)
        named = exit_tokens(options.exit_tokens, models.tokenizer, source, one.spec.vocabulary)
        leave = Exit(layer, named, options.correction)
    exits = blueprints.exit_head(one.decoder, leave, precision)
    spec, package = blueprints.write_target(
        one.decoder,
        one.spec,
        leave.layer,
        exits,
        folder,
        lambda share: on_progress("Converting the target", share),
    )
    return _Target(
        spec, package, exits, one.ids, _logits(one.decoder, [one.ids])[0], one.deviations
    )


def _write_draft(
    models: CoreMLModels, folder: Path, options: ExportOptions, on_progress: OnProgress
) -> _Draft:
    source, precision = models.draft, options.guide_precision
    assert source is not None
    context = min(models.context, longest_context(source, "draft"))
    two = _read("draft", source, models.tokenizer, context, precision, on_progress)
    streams = read_streams(source)
    if streams is not None:
        streams.refuse_unless_for(source.folder, two.spec.layers, two.spec.hidden)
    spec, packages = blueprints.write_draft(
        two.decoder,
        two.spec,
        streams,
        folder,
        lambda share: on_progress("Converting the draft", share),
    )
    tree = check.tree_after(two.ids)
    logits = _logits(two.decoder, [two.ids, *tree.texts(two.ids)])
    if streams is not None:
        with torch.no_grad():
            logits.append(stream_logits(two.decoder, streams, two.ids))
    return _Draft(spec, packages, two.ids, tree, logits, two.deviations)


def _check(
    bundle: Bundle, one: _Target, two: _Draft | None, on_progress: OnProgress
) -> dict[str, float]:
    """Evaluate the written programs; all deviations of the export, these last."""
    on_progress("Checking the programs", 0.0)
    deviations = one.deviations | ({} if two is None else two.deviations)
    deviations["target, evaluated"] = coreml_check.check_target(bundle, one.ids, one.logits)
    deviations["exit head, evaluated"] = coreml_check.check_exit(bundle, one.exit)
    on_progress("Checking the programs", 0.6)
    if two is not None:
        off = coreml_check.check_draft(bundle, two.ids, two.tree, two.logits)
        deviations["draft with trees, evaluated"] = off
    on_progress("Checking the programs", 1.0)
    return deviations


def _read(
    role: Role,
    source: Source,
    tokenizer: Tokenizer,
    context: int,
    precision: Precision,
    on_progress: OnProgress,
) -> _Model:
    """Read a model, compare it with its source, and round its weights."""
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
