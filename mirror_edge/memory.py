"""How much memory a bundle needs, before any of it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirror_edge.bundle import Manifest

__all__ = ["MemoryPlan", "plan_memory", "remembered"]

_REMEMBERED = 1024
"""Tokens of a text that a draft keeps in its cache at most."""
# ONNX Runtime keeps repacked copies of the weights beside the mapped file.
_PACKED = 2.0


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, at the full context."""

    target_weights: int
    target_cache: int
    draft_weights: int
    draft_cache: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.target_weights + self.target_cache + self.draft_weights + self.draft_cache


def remembered(context: int) -> int:
    """How many rows of a text a draft with such a context keeps; see `trunk.py`."""
    return min(context, _REMEMBERED)


def plan_memory(manifest: Manifest) -> MemoryPlan:
    """The plan of a bundle: weights from its files, caches from its shapes."""

    def weights(folder: str, shared: int = 0) -> int:
        files = [spec.bytes for name, spec in manifest.files.items() if name.startswith(folder)]
        return int(_PACKED * (sum(files) + shared))

    target, draft = manifest.target.model, manifest.draft
    draft_cache = 0
    if draft is not None:
        # The programs of Core ML have the cache that they were made with.
        own = draft.model.context
        rows = (own if manifest.format == "coreml" else remembered(own)) + draft.branch_rows
        if draft.fixed is not None:
            rows = max(rows, draft.fixed.slots)
        draft_cache = draft.model.cache_bytes(draft.model.layers, rows)
    return MemoryPlan(
        target_weights=weights("target/"),
        target_cache=target.cache_bytes(target.layers, target.context),
        # What a draft shares on disk it loads for itself.
        draft_weights=weights("draft/", 0 if draft is None else draft.shared_bytes),
        draft_cache=draft_cache,
    )
