"""What distinguishes one training run from another: its options, its models and its data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mirror_edge.export.recipe import DraftShape, Recipe
from mirror_edge.export.source import Source

__all__ = ["identity"]


def identity(
    target: Source, draft: Source | str | Path | DraftShape, data: Sequence[Path], recipe: Recipe
) -> dict[str, str]:
    """What a run must have in common with a checkpoint to resume from it."""
    options = {name: str(value) for name, value in asdict(recipe).items()}
    for name in ("device", "compiled", "checkpoint_seconds"):
        del options[name]
    return {
        **options,
        "target": _digest(_model_files(target)),
        "draft": _digest(_model_files(draft)) if isinstance(draft, Source) else str(draft),
        "data": _digest([file for file in data if file.is_file()]),
    }


def _model_files(source: Source) -> list[Path]:
    wanted = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
    return sorted(file for pattern in wanted for file in source.folder.glob(pattern))


def _digest(files: Sequence[Path]) -> str:
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            sha.update(hashlib.file_digest(opened, "sha256").digest())
    return sha.hexdigest()[:12]
