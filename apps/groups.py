"""Groups of options: a dataclass that a command takes as one parameter."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

__all__ = ["spread"]


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer wants it: a dataclass parameter becomes one option per field."""
    shown: list[inspect.Parameter] = []
    groups: dict[str, list[str]] = {}
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        if not dataclasses.is_dataclass(parameter.annotation):
            shown.append(parameter)
            continue
        hints = get_type_hints(parameter.annotation, include_extras=True)
        fields = dataclasses.fields(parameter.annotation)
        groups[parameter.name] = [field.name for field in fields]
        shown += [
            parameter.replace(name=f.name, default=f.default, annotation=hints[f.name])
            for f in fields
        ]

    @functools.wraps(command)
    def spread_out(**given: Any) -> None:
        for name, fields in groups.items():
            kind = signature.parameters[name].annotation
            given[name] = kind(**{field: given.pop(field) for field in fields})
        command(**given)

    spread_out.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return spread_out
