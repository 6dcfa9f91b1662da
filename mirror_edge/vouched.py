"""Opening a bundle: its files are hashed on first use, and again when one of them has changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_edge import bundle as bundles
from mirror_edge import kept

if TYPE_CHECKING:
    from mirror_edge.bundle import Bundle

__all__ = ["open_bundle"]


def open_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle; with `verify`, check that its files have the hashes of its manifest.

    Hashing gigabytes takes seconds. It is done once, as long as the files keep their sizes and
    times of modification.

    Raises:
        BundleError: as `bundle.read`.
    """
    found = bundles.read(folder, verify=False)
    if not verify:
        return found

    try:
        kept.entry("verified", {"files": _state(found)}, lambda _: bundles.read(folder))
    except OSError:  # Nothing can be kept.
        bundles.read(folder)
    return found


def _state(bundle: Bundle) -> str:
    """A hash of where the files are and of everything that shows a change."""
    state = hashlib.sha256(str(bundle.folder.resolve()).encode())
    for name in (bundles.MANIFEST, *bundle.manifest.files):
        seen = bundle.file(name).stat()
        state.update(
            f"\n{name} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns} {seen.st_ino}".encode()
        )
    return state.hexdigest()
