"""Dataclasses from JSON: a missing, unknown or mistyped field is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mirror_edge.errors import BundleError

__all__ = ["checked"]

_JSON_TYPES = {"int": int, "str": str}


def checked(kind: type[Any], raw: object, path: Path, where: str) -> dict[str, Any]:
    """The fields of the dataclass `kind` from `raw`, which stands at `where` in `path`.

    Raises:
        BundleError: naming the field at fault.
    """
    if not isinstance(raw, dict):
        raise BundleError(f"{path}: {where} must be an object. Export again.")
    known = {field.name: field for field in dataclasses.fields(kind)}
    if foreign := sorted(set(raw) - set(known)):
        raise BundleError(f"{path}: {where} has unknown fields {', '.join(foreign)}.")
    for name, field in known.items():
        if name not in raw:
            if field.default is field.default_factory is dataclasses.MISSING:
                raise BundleError(f"{path}: {where}.{name} is missing. Export again.")
            continue
        wanted = _JSON_TYPES.get(str(field.type))
        value = raw[name]
        if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise BundleError(f"{path}: {where}.{name} must be {field.type}, not {value!r}.")
    return dict(raw)
