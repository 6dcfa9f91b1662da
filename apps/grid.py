"""The fixed settings that a sweep tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from mirror_edge.policy import Speculation

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """Windows for mode `sd`; windows × candidates × branches × places for mode `mirror`."""

    windows: Annotated[str, typer.Option(help="γ, comma-separated.")] = "1,2,3,4,5,7"
    candidates: Annotated[str, typer.Option(help="κ, comma-separated.")] = "8"
    branches: Annotated[str, typer.Option(help="R, comma-separated.")] = "2,8,32"
    exit_heads: Annotated[
        str, typer.Option(help="Devices of the exit head, target and draft, comma-separated.")
    ] = "target"

    def settings(self) -> dict[str, Speculation]:
        """Every setting, by its name.

        Raises:
            OptionError: naming the option that cannot be read.
        """
        from mirror_edge.policy import Speculation

        windows = _numbers("--windows", self.windows)
        candidates = _numbers("--candidates", self.candidates)
        branches = _numbers("--branches", self.branches)
        places = _places(self.exit_heads)
        serial = {f"sd γ={window}": Speculation("sd", window) for window in windows}
        mirrored = {
            f"mirror γ={window} κ={each} R={roots} exit={place}": Speculation(
                "mirror", window, each, roots, exit_head=place
            )
            for window in windows
            for each in candidates
            for roots in branches
            for place in places
            if roots <= each * (window + 1)
        }
        return serial | mirrored


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise OptionError(f"{option} is {text!r}; write numbers of at least 1, comma-separated.")
    return found


def _places(text: str) -> list[Any]:
    from mirror_edge.policy import ExitPlace

    places = text.split(",")
    if not set(places) <= set(get_args(ExitPlace)):
        raise OptionError(f"--exit-heads is {text!r}; write target, draft, or target,draft.")
    return places
