"""Recordings: how well the models of a real answer agreed, place by place, to simulate it again.

A recording is a JSON file: for every token of an answer whether the draft says it too, given what
stands before it, and its rank at the exit head (null: not among the candidates that were asked
for). Real runs do not depend on anything else, whatever the mode, the window or the roots.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mirror_edge.errors import DataError
from mirror_edge.runtimes.scripts import RecordedScript

__all__ = ["Recording"]

_VERSION = 1


@dataclass(frozen=True)
class Recording:
    """Answers, one after the other, as one text."""

    about: dict[str, Any]
    """Of what: bundle, prompts, temperature."""
    draft: list[bool]
    """Whether the draft says the token in each place."""
    exit: list[int | None]
    """Its rank among the exit head's candidates, from 0."""

    def script(self) -> RecordedScript:
        """What the models of a simulation say."""
        return RecordedScript(self.draft, self.exit)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps({"recording": _VERSION} | asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read a file that `write` made.

        Raises:
            DataError: naming the file and the field at fault.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise DataError(f"{path}: is not JSON ({error}).") from error
        if not isinstance(content, dict) or content.get("recording") != _VERSION:
            raise DataError(f"{path}: is no recording of version {_VERSION}.")
        draft, ranks = content.get("draft"), content.get("exit")
        if not isinstance(draft, list) or not all(type(said) is bool for said in draft):
            raise DataError(f"{path}: draft must be a list of true and false.")
        if not isinstance(ranks, list) or not all(r is None or type(r) is int for r in ranks):
            raise DataError(f"{path}: exit must be a list of ranks or nulls.")
        if len(draft) != len(ranks) or len(draft) < 3:
            raise DataError(
                f"{path}: draft has {len(draft)} places and exit {len(ranks)}; "
                "they must be equal, 3 or more."
            )
        about = content.get("about")
        return cls(about if isinstance(about, dict) else {}, draft, ranks)
