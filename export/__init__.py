"""From two models (checkpoints or ONNX folders) to a bundle, and from a target to its draft.

Checkpoints need the ``[export]`` extra; ONNX folders need only onnx. Nothing heavy is imported
before `export` or `distill` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_edge.errors import MissingExtraError
from mirror_edge.export.options import ExportOptions
from mirror_edge.export.recipe import DraftShape, Recipe

if TYPE_CHECKING:
    from mirror_edge.bundle import Format, Precision
    from mirror_edge.export.distillation import Distilled, Status
    from mirror_edge.export.exit_head import Correction
    from mirror_edge.export.pipeline import Exported

__all__ = ["DraftShape", "Recipe", "distill", "export"]


def export(
    target: str | Path,
    draft: str | Path | None,
    output: str | Path,
    *,
    exit_layer: int | None = None,
    precision: Precision | None = None,
    draft_precision: Precision | None = None,
    exit_tokens: Sequence[int] | None = None,
    correction: Correction | None = None,
    calibrate: Sequence[str | Path] = (),
    exit_rank: int | None = None,
    format: Format = "onnx",
    context: int | None = None,
    draft_for: str | None = None,
    draft_vocabulary: int | None = None,
    force: bool = False,
    on_progress: Callable[[str, float], None] | None = None,
) -> Exported:
    """Write the bundle `output` for a target and its draft (None: no draft), or nothing at all.

    `target` and `draft` are each a Hugging Face folder, a name on the hub, or a folder in ONNX
    Runtime GenAI's format; the target may also be a folder written by optimum. A draft
    ``early-exit`` means the target's own layers up to the exit, unless there is a folder of that
    name. Graphs are compared with the models they come from before anything stays on disk.

    With `format` ``coreml`` the bundle holds Core ML packages, made for `context` tokens (default:
    the target's own context, at most 4096). Each model is then a checkpoint, a folder in GenAI's
    format that is not quantised, or an ONNX bundle, whose target or draft is converted.

    `exit_layer` is half of the target's layers by default. `precision` is int4 for checkpoints by
    default, and that of the files for ONNX folders; ``int4-mixed`` keeps the matrices that matter
    most in int8. `draft_precision` is the same by default, or int4 for ``int4-mixed``.
    `exit_tokens` are the ids that the exit head can name (by default all of a small vocabulary, the
    most common ones of a large one); `correction` is its trained low-rank step.

    With text files to `calibrate` on, a correction of rank `exit_rank` (default 64) is fitted after
    several layers, the best of them becomes the exit layer unless one is given, and the exit head
    names the tokens that are most common in the text.

    With `draft_for`, ``qnn`` or ``openvino``, the bundle also holds the draft at fixed shapes, for
    an NPU. With `draft_vocabulary` N the draft names only the N tokens with the lowest ids, which
    makes it faster; the target still names every token.

    `force` replaces a bundle at `output`. `on_progress` is called with the name of each stage and
    the share of it done, 0 to 1.

    Raises:
        OptionError: an argument that cannot be honoured.
        DataError: naming the file, and the line, to calibrate on that cannot be used.
        ExportError: a model that cannot be exported, or whose graphs differ from it.
        MissingExtraError: with the line that installs what is missing.
    """
    options = ExportOptions(
        exit_layer=exit_layer,
        precision=precision,
        draft_precision=draft_precision,
        exit_tokens=exit_tokens,
        correction=correction,
        calibrate=calibrate,
        exit_rank=exit_rank,
        format=format,
        context=context,
        draft_for=draft_for,
        draft_vocabulary=draft_vocabulary,
        force=force,
    )
    core_ml = options.format == "coreml"
    extras = "export,coreml" if core_ml else "export"
    try:
        if core_ml:
            from mirror_edge.export.coreml import run
        else:
            from mirror_edge.export.pipeline import run
    except ImportError as error:
        raise MissingExtraError(
            f"Exporting needs the package {error.name}, which is not installed. "
            f"Install it with: pip install 'mirror-edge[{extras}]'"
        ) from error
    progress = on_progress or (lambda _stage, _share: None)
    return run(target, draft, Path(output).expanduser(), options, progress)


def distill(
    target: str | Path,
    draft: str | Path | DraftShape,
    data: Sequence[str | Path],
    output: str | Path,
    *,
    held_out: Sequence[str | Path] = (),
    recipe: Recipe | None = None,
    on_progress: Callable[[Status], None] | None = None,
) -> Distilled:
    """Train a draft for `target` and write it to the folder `output`, or nothing at all.

    `target` is a checkpoint, a folder or a name on the hub; `draft` is another one with the same
    tokenizer, to continue training, or the shape of a fresh one. `data` and `held_out` are files of
    JSON lines or plain text; without `held_out`, some of the documents in `data` are held out.

    A checkpoint of the run is kept next to `output` until it is finished: called again with the
    same arguments, an interrupted run resumes. `on_progress` is called with its status.

    Raises:
        OptionError: an argument that cannot be honoured, or a checkpoint of another run.
        DataError: naming the file, and the line, that cannot be used.
        ExportError: a model that cannot be trained or trained with.
        MissingExtraError: with the line that installs what is missing.
    """
    try:
        from mirror_edge.export.distillation import run
    except ImportError as error:
        raise MissingExtraError(
            f"Training needs the package {error.name}, which is not installed. "
            "Install it with: pip install 'mirror-edge[export]'"
        ) from error
    return run(
        target,
        draft,
        [Path(file) for file in data],
        Path(output),
        held_out=[Path(file) for file in held_out],
        recipe=recipe or Recipe(),
        on_progress=on_progress or (lambda _status: None),
    )
