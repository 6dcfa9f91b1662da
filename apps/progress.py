"""Progress bars, one for each stage of a long piece of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mirror_edge.apps.program import end_if_told

__all__ = ["stages"]


@contextmanager
def stages() -> Iterator[Callable[[str, float], None]]:
    """Bars on standard error; yields a function of a stage's name and the share of it done, 0 to 1.

    A stage counts as done when another one follows.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def show(stage: str, share: float) -> None:
        end_if_told()
        for name, task in tasks.items():
            if name != stage:
                progress.update(task, completed=1.0)
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=1.0)
        progress.update(tasks[stage], completed=share)
        progress.start()

    try:
        yield show
    finally:
        if tasks:  # bars that were never started would still print an empty line
            progress.stop()
