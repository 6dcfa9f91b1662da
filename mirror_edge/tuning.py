"""The controllers of a loaded model: what mode `auto` has measured and learned on its devices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mirror_edge import kept
from mirror_edge.controller import Controller
from mirror_edge.costs import Costs
from mirror_edge.driving import waited
from mirror_edge.errors import DeviceError
from mirror_edge.experience import Experience
from mirror_edge.measuring import measure

if TYPE_CHECKING:
    from mirror_edge.answer import Decoder
    from mirror_edge.protocols import Drafter

__all__ = ["Tuning"]

_log = logging.getLogger("mirror_edge")


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
                return key, Controller(_costs(key, measured), _experience(key))

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
            kept.write("experience", key, controller.experience.as_dict())


def _costs(key: kept.Key, measured: Callable[[], Costs]) -> Costs:
    """The costs kept at an earlier start, or else `measured` now and kept."""
    found = kept.recall("costs", key, Costs.of)
    if found is None:
        found = measured()
        kept.write("costs", key, asdict(found))
    return found


def _experience(key: kept.Key) -> Experience:
    """What was learned at earlier starts, if it can be read."""
    return kept.recall("experience", key, Experience.of) or Experience()
