"""A benchmark's figures on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["COLUMNS", "GROUPS", "TITLES", "cell", "heading", "show"]

GROUPS = {
    "mt_bench": "multi-turn conversation",
    "translation": "translation",
    "summarization": "summarization",
    "qa": "question answering",
    "math_reasoning": "mathematical reasoning",
    "rag": "retrieval-augmented",
}
"""The names of Spec-Bench's six groups."""
TITLES = {
    "speedup": "speed-up over ar",
    "tokens_per_second": "tokens per second",
    "mean_accepted_tokens": "mean accepted tokens",
}
"""The figures that are shown by group."""
COLUMNS = {
    "tokens_per_second": ("tok/s", "{:.1f}"),
    "tokens_per_second_deviation": ("±", "{:.1f}"),
    "speedup": ("speed-up", "{:.2f}"),
    "speedup_interval": ("95 %", "{:.2f}"),
    "mean_accepted_tokens": ("accepted", "{:.2f}"),
    "decode_tokens_per_second": ("decode tok/s", "{:.1f}"),
    "time_to_first_token_ms": ("first token ms", "{:.1f}"),
    "hit_rate": ("hits", "{:.0%}"),
    "overlap": ("overlap", "{:.0%}"),
    "rollout_forwards_per_step": ("forwards", "{:.1f}"),
    "exposed_draft_ms_per_step": ("exposed ms", "{:.2f}"),
    "host_ms_per_step": ("host ms", "{:.2f}"),
    "joules_per_token": ("J/token", "{:.2f}"),
    "same_text": ("same text", "{:.0%}"),
}
"""The figures of all questions together."""


def heading(figures: dict[str, Any]) -> list[str]:
    """What was measured, line by line."""
    about, machine = figures["settings"], figures["machine"]
    lines = [
        f"{figures['bundle']} on {machine['processor']}, {machine['cores']} cores, "
        f"ONNX Runtime {machine['onnxruntime']}; target on {machine['target_device']}, "
        f"draft on {machine['draft_device']}",
        f"questions: {figures['questions']}; {about['repeat']} repeats, answers of at most "
        f"{about['max_new_tokens']} tokens per turn, temperature {about['temperature']:g}",
        f"energy: {figures['energy']}",
    ]
    if machine["emulated"]:
        lines.append(machine["emulated"])
    if figures["planted"]:
        lines.append("a planted pair: its language is artificial")
    if figures["left_out"]:
        lines.append("skipped, too long for the context: lines " + _ranges(figures["left_out"]))
    if figures["interrupted"]:
        lines.append("stopped early: only complete rounds are shown")
    return lines


def _ranges(numbers: list[int]) -> str:
    """Neighbours put together: 3, 7 to 9."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join(" to ".join(map(str, ends)) for ends in found)


def cell(value: Any, form: str) -> str:
    """A figure, or an interval of two; a dash for one that is unknown."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(form.format(one) for one in value)
    return form.format(value)


def show(figures: dict[str, Any]) -> None:
    """Print everything."""
    from rich.console import Console

    console = Console()
    # Wider than the terminal rather than cut off.
    console.width = max(console.width, 26 + 18 * len(figures["overall"]))
    for line in heading(figures):
        console.print(line, highlight=False, soft_wrap=True)
    for key, title in TITLES.items():
        console.print()
        console.print(_by_group(figures, key, title))
    console.print()
    console.print(_overall(figures["overall"]))


def _by_group(figures: dict[str, Any], key: str, title: str) -> Table:
    table, form = _table(title, figures["overall"]), COLUMNS[key][1]
    rows = {GROUPS.get(name, name): found for name, found in figures["categories"].items()}
    for name, found in {**rows, "overall": figures["overall"]}.items():
        table.add_row(name, *(cell(one[key], form) for one in found.values()))
    return table


def _overall(overall: dict[str, Any]) -> Table:
    """One row per figure: there are more of them than contenders."""
    table = _table("overall", overall)
    for key, (name, form) in COLUMNS.items():
        if any(found[key] is not None for found in overall.values()):
            table.add_row(name, *(cell(found[key], form) for found in overall.values()))
    places = max(len(found["acceptance_by_position"]) for found in overall.values())
    for place in range(places):
        shares = [found["acceptance_by_position"] for found in overall.values()]
        row = (f"{one[place]:.0%}" if place < len(one) else "-" for one in shares)
        table.add_row(f"position {place + 1} accepted", *row)
    return table


def _table(title: str, contenders: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="none", padding=(0, 1, 0, 0))
    table.add_column(title, no_wrap=True, min_width=24)
    for name in contenders:
        table.add_column(name, justify="right", no_wrap=True)
    return table
