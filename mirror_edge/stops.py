"""Stop strings: where an answer is cut, even if they arrive in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from mirror_edge.errors import OptionError

__all__ = ["StopStrings"]


class StopStrings:
    """Cuts a stream of text before the first stop string that is complete in it.

    Of stop strings that end at the same character, the longest counts.
    """

    def __init__(self, stops: str | Iterable[str]) -> None:
        """Take the stop strings.

        Raises:
            OptionError: for an empty stop string, or something that is not a string.
        """
        if not isinstance(stops, Iterable):
            raise OptionError(f"stop is {stops!r}; it must be a list of strings.")
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(isinstance(stop, str) and stop for stop in self._stops):
            raise OptionError("stop: every stop string must be a non-empty string.")
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._hit = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text now known to precede any stop string, and whether one was hit.

        Only the longest ending that a stop string begins with is held back. After a hit nothing
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
        """The text that was held back and turned out not to be a stop string."""
        rest, self._held = self._held, ""
        return rest

    def _begun(self, text: str) -> int:
        """Length of the longest ending of `text` that a stop string begins with."""
        lengths = range(min(len(text), self._longest - 1), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[-n:]) for s in self._stops)), 0)
