"""How much memory a bundle needs, before any of it is allocated, and which context fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mirror_edge.errors import DeviceError, OptionError
from mirror_edge.free_memory import available_memory
from mirror_edge.values import require_whole

if TYPE_CHECKING:
    from mirror_edge.bundle import Bundle
    from mirror_edge.manifest import Manifest

__all__ = ["MemoryPlan", "fitted", "plan_memory", "remembered"]

_REMEMBERED = 1024
"""Most tokens of a text that a draft keeps in its cache."""
_LEAST, _STEP = 1024, 256
"""A context that is made to fit has at least `_LEAST` tokens and is a multiple of `_STEP`."""
_OURS = 0.75
"""Share of the available memory that such a context may use: other programs grow too."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of memory, at the full context."""

    target_weights: int
    target_cache: int
    draft_weights: int
    draft_cache: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.target_weights + self.target_cache + self.draft_weights + self.draft_cache


def remembered(context: int) -> int:
    """How many rows of a text a draft with this context keeps; see `trunk.py`."""
    return min(context, _REMEMBERED)


def plan_memory(manifest: Manifest) -> MemoryPlan:
    """The plan of a bundle: weights from its files, caches from its shapes.

    There is one copy of each weight: the mapped file, or a version repacked for the device.
    """

    def weights(folder: str) -> int:
        return sum(spec.bytes for name, spec in manifest.files.items() if name.startswith(folder))

    target, draft = manifest.target.model, manifest.draft
    draft_cache = 0
    if draft is not None:
        # The caches of Core ML programs have a fixed size.
        own = draft.model.context
        rows = (own if manifest.format == "coreml" else remembered(own)) + draft.branch_rows
        if draft.fixed is not None:
            rows = max(rows, draft.fixed.slots)
        draft_cache = draft.model.cache_bytes(draft.model.layers, rows)
    return MemoryPlan(
        target_weights=weights("target/"),
        target_cache=target.cache_bytes(target.layers, target.context),
        # A draft that shares weights on disk loads its own copy.
        draft_weights=weights("draft/") + (0 if draft is None else draft.shared_bytes),
        draft_cache=draft_cache,
    )


def fitted(bundle: Bundle, context: int | None, on_progress: Callable[[str], None]) -> Bundle:
    """`bundle` with a context of `context` tokens; None: its own, or as many as memory has room
    for.

    `on_progress` is called with a line if the context is reduced.

    Raises:
        DeviceError: for too little memory.
        OptionError: for a context that the bundle cannot have.
    """
    manifest, full = bundle.manifest, bundle.manifest.target.model.context
    if context is not None:
        _refuse_context(context, full, manifest.format)
    wanted = context or full
    asked = _cut(bundle, wanted)
    needed, free = plan_memory(asked.manifest).total, available_memory()
    if free is None or needed <= free:
        return asked
    room = _room(manifest, int(_OURS * free))
    if context is not None or room < min(_LEAST, full) or manifest.format == "coreml":
        advice = f", give a --context of {room:,}" if 0 < room < wanted else ""
        raise DeviceError(
            f"{bundle.folder}: needs about {needed / 1e9:.1f} GB of memory at a context of "
            f"{wanted:,} tokens, and {free / 1e9:.1f} GB are available. "
            f"Close other programs{advice}, or export at a lower precision."
        )
    on_progress(
        f"context: {room:,} of the model's {full:,} tokens, which is what memory has room for; "
        "--context sets another"
    )
    return _cut(bundle, room)


def _refuse_context(context: int, full: int, format: str) -> None:
    require_whole("context", context)
    if not 2 <= context <= full:
        raise OptionError(f"context is {context}; it must be from 2 to {full:,}, the model's own.")
    if format == "coreml" and context != full:
        raise OptionError(
            f"context is {context}; this Core ML bundle's caches have a fixed {full:,} tokens. "
            "Leave it out, or export with another --context."
        )


def _cut(bundle: Bundle, context: int) -> Bundle:
    target = bundle.manifest.target
    cut = replace(target, model=replace(target.model, context=context))
    return replace(bundle, manifest=replace(bundle.manifest, target=cut))


def _room(manifest: Manifest, memory: int) -> int:
    """The longest context with which everything fits into `memory` bytes; 0 if none does."""
    target, plan = manifest.target.model, plan_memory(manifest)
    left = memory - (plan.total - plan.target_cache)
    tokens = left // target.cache_bytes(target.layers, 1)
    return max(0, min(tokens // _STEP * _STEP, target.context))
