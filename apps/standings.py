"""What the heats of a sweep say: the best fixed settings, and `auto` compared with them."""

from __future__ import annotations

import statistics
from typing import Any

from mirror_edge.apps.heats import Log, Part, quartiles, ratios

__all__ = ["AUTO", "REFERENCE", "best", "figures"]

REFERENCE, AUTO = "ar", "auto"


def best(log: Log) -> dict[str, str]:
    """The fastest setting of each mode in the grid."""
    found: dict[str, tuple[float, str]] = {}
    for name, (_, median, _) in _over(log, "grid").items():
        mode = name.split()[0]
        found[mode] = max(found.get(mode, (0.0, "")), (median, name))
    return {mode: name for mode, (_, name) in found.items() if mode != REFERENCE}


def figures(log: Log) -> dict[str, Any]:
    """Of all heats; ratios are a quartile, the median and a quartile."""
    finals = log.of("final")
    found: dict[str, Any] = {"grid_over_ar": _over(log, "grid"), "finals": len(finals)}
    if not finals:
        return found
    own = {name: [heat.answers[name] for heat in finals] for name in finals[0].answers}
    over = _over(log, "final")
    fixed = max((name for name in own if name != AUTO), key=lambda name: over[name][1])
    serial, mirrored = (next(n for n in own if n.startswith(m)) for m in ("sd", "mirror"))
    return found | {
        "tokens_per_second": {
            name: statistics.median(one.speed for one in answers) for name, answers in own.items()
        },
        "over_ar": over,
        "measured_over_law": {
            name: sum(one.stepped for one in answers) / sum(one.law for one in answers)
            for name, answers in own.items()
        },
        "same_text": all(one.same for answers in own.values() for one in answers),
        "best_fixed": fixed,
        "auto_over_best_fixed": quartiles(ratios(finals, AUTO, fixed)),
        "auto_over_ar": over[AUTO],
        "mirror_over_sd": quartiles(ratios(finals, mirrored, serial)),
    }


def _over(log: Log, part: Part) -> dict[str, tuple[float, float, float]]:
    """By setting: how much faster than the reference, the median between the quartiles."""
    heats = log.of(part)
    names = dict.fromkeys(name for heat in heats for name in heat.answers)
    return {name: quartiles(ratios(heats, name, REFERENCE)) for name in names}
