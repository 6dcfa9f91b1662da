"""The controllers of a loaded model: what mode `auto` has measured and learned on its devices."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror_edge import kept
from mirror_edge.controller import Controller
from mirror_edge.driving import waited
from mirror_edge.errors import DeviceError
from mirror_edge.experience import Experience
from mirror_edge.measuring import measure, recall

if TYPE_CHECKING:
    from mirror_edge.answer import Decoder
    from mirror_edge.costs import Costs
    from mirror_edge.protocols import Drafter

__all__ = ["Tuning"]

_log = logging.getLogger("mirror_edge")

_LEARNT = "experience.json"


class Tuning:
    """One controller per drafter; each measures the devices once and continues from what was
    learned at earlier starts.
    """

    def __init__(
        self,
        decoder: Decoder,
        setup: Callable[[], Mapping[str, str]],
        on_measure: Callable[[str], None],
    ) -> None:
        """For the pair on `decoder`; `setup` names everything that its costs depend on.

        `on_measure` is called before they are measured, which takes seconds.
        """
        self._decoder, self._setup, self._on_measure = decoder, setup, on_measure
        self._controllers: dict[str, tuple[kept.Key, Controller]] = {}

    def controller(
        self, name: str, drafter: Drafter
    ) -> Generator[Future[Any], None, Controller | None]:
        """The controller for this drafter; None if the devices could not be measured."""
        if name not in self._controllers:

            def measured() -> Costs:
                self._on_measure("Measuring this pair on this machine (once).")
                return measure(self._decoder, drafter)

            def made() -> tuple[kept.Key, Controller]:
                key = {**self._setup(), "drafter": name}
                costs = recall(key, measured)
                return key, Controller(costs, _learnt(key))

            try:
                pair = yield from waited(self._decoder.target_lane.start("measure", made))
            except DeviceError as error:
                _log.warning("the devices could not be measured: %s", error)
                return None
            self._controllers[name] = pair
        return self._controllers[name][1]

    def keep(self) -> None:
        """Keep what the controllers have learned, for the next start."""
        for key, controller in self._controllers.values():
            learnt = json.dumps(controller.experience.as_dict())

            def make(folder: Path, learnt: str = learnt) -> None:
                (folder / _LEARNT).write_text(learnt, encoding="utf-8")

            with suppress(OSError):  # Then it is learned again.
                kept.renew("experience", key, make)


def _learnt(key: kept.Key) -> Experience:
    """What was learned at earlier starts, if it can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if place := kept.find("experience", key):
            return Experience.of(json.loads((place / _LEARNT).read_text(encoding="utf-8")))
    return Experience()
