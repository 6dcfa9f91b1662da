"""Stop strings: where an answer is cut, though they may come in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from mirror_edge.errors import OptionError

__all__ = ["StopStrings"]


class StopStrings:
    """Cuts a stream of text before the first stop string to be complete in it.

    Of stop strings that are complete at the same character, the longest counts.
    """

    def __init__(self, stops: str | Iterable[str]) -> None:
        """Raises OptionError for an empty stop string, and for what is none."""
        if not isinstance(stops, Iterable):
            raise OptionError(f"stop is {stops!r}; it must be a list of strings.")
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(isinstance(stop, str) and stop for stop in self._stops):
            raise OptionError("stop: every stop string must be a non-empty string.")
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._hit = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text now known to stand before any stop string, and whether one was hit.

        Held back is only the longest ending that a stop string begins with. After a hit nothing
        more comes.
        """
        if self._hit:
            return "", True
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        self._hit = bool(found)
        cut = min(found)[1] if found else len(text) - self._begun(text)
        self._held = "" if found else text[cut:]
        return text[:cut], self._hit

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        rest, self._held = self._held, ""
        return rest

    def _begun(self, text: str) -> int:
        """Length of the longest ending of `text` that a stop string begins with."""
        lengths = range(min(len(text), self._longest - 1), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[-n:]) for s in self._stops)), 0)
