"""Recordings: where the models of a real answer agreed, token by token, to simulate it again.

A recording is a JSON file. For every token of an answer it states whether the draft predicts it
from the tokens before, and its rank at the exit head (null if it is not among the candidates
requested). Both are the same in every mode, with any window and any roots.
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
    """One or more answers, concatenated into one text."""

    about: dict[str, Any]
    """What was recorded: bundle, prompts, temperature."""
    draft: list[bool]
    """For each token, whether the draft predicts it."""
    exit: list[int | None]
    """Its rank among the exit head's candidates, from 0; None if it is not one of them."""

    def script(self) -> RecordedScript:
        """The output of simulated models that agree where these did."""
        return RecordedScript(self.draft, self.exit)

    def write(self, path: Path) -> None:
        """Write the recording to `path`."""
        path.write_text(json.dumps({"recording": _VERSION} | asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read a file written by `write`.

        Raises:
            DataError: if the file cannot be read or a field is invalid, naming both.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise DataError(f"{path}: is not valid JSON ({error}).") from error
        if not isinstance(content, dict) or content.get("recording") != _VERSION:
            raise DataError(f"{path}: is not a recording of version {_VERSION}.")
        draft, ranks = content.get("draft"), content.get("exit")
        if not isinstance(draft, list) or not all(type(hit) is bool for hit in draft):
            raise DataError(f"{path}: draft must be a list of true and false.")
        if not isinstance(ranks, list) or not all(r is None or type(r) is int for r in ranks):
            raise DataError(f"{path}: exit must be a list of ranks or nulls.")
        if len(draft) != len(ranks) or len(draft) < 3:
            raise DataError(
                f"{path}: draft has {len(draft)} values and exit {len(ranks)}; "
                "both must have the same number, 3 or more."
            )
        about = content.get("about")
        return cls(about if isinstance(about, dict) else {}, draft, ranks)
