"""From two models, checkpoints or ONNX folders, to a bundle.

Needs the ``[export]`` extra for checkpoints; ONNX folders need onnx alone. Nothing heavy is
imported before `export` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from mirror_edge.bundle import Precision
    from mirror_edge.export.exit_head import Correction
    from mirror_edge.export.pipeline import Exported

__all__ = ["export"]


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
    force: bool = False,
    on_progress: Callable[[str, float], None] | None = None,
) -> Exported:
    """Write the bundle `output` for a target and its draft (None: without one), or nothing at all.

    `target` and `draft` are each a Hugging Face folder, a name on the hub, or a folder in ONNX
    Runtime GenAI's format; the target may also be a folder that optimum wrote. Graphs are compared
    with the models they come from before anything stays on disk.

    `exit_layer` is half of the target's layers unless given. `precision` is int4 for checkpoints
    unless given, and fixed for ONNX folders. `exit_tokens` are the ids that the exit head can name
    (otherwise all of a small vocabulary, the commonest of a large one); `correction` is its trained
    low-rank step. `on_progress` hears the name of each stage and its share done, 0 to 1.

    Raises:
        OptionError: an argument that cannot be honoured.
        ExportError: a model that cannot be exported, or whose graphs differ from it.
        MissingExtraError: with the line that installs what is missing.
    """
    try:
        from mirror_edge.export.pipeline import run
    except ImportError as error:
        raise MissingExtraError(
            f"Exporting needs the package {error.name}, which is not installed. "
            "Install it with: pip install 'mirror-edge[export]'"
        ) from error
    return run(
        target,
        draft,
        output,
        exit_layer=exit_layer,
        precision=precision,
        draft_precision=draft_precision,
        exit_tokens=exit_tokens,
        correction=correction,
        force=force,
        on_progress=on_progress or (lambda _stage, _share: None),
    )
