"""The controllers of a loaded model: what mode `auto` has measured and learnt of its devices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from mirror_edge.controller import Controller
from mirror_edge.driving import waited
from mirror_edge.errors import DeviceError
from mirror_edge.measuring import measure, recall

if TYPE_CHECKING:
    from mirror_edge.answer import Decoder
    from mirror_edge.costs import Costs
    from mirror_edge.protocols import Drafter

__all__ = ["Tuning"]

_log = logging.getLogger("mirror_edge")


class Tuning:
    """One controller a drafter; each has the devices measured once, and keeps what it learns."""

    def __init__(self, decoder: Decoder, setup: Callable[[], Mapping[str, str]]) -> None:
        """Of the pair on `decoder`; `setup` names all that its costs depend on."""
        self._decoder, self._setup = decoder, setup
        self._controllers: dict[str, Controller] = {}

    def controller(
        self, name: str, drafter: Drafter
    ) -> Generator[Future[Any], None, Controller | None]:
        """The controller for this drafter; None if the devices could not be measured."""
        if name not in self._controllers:

            def costs_of() -> Costs:
                key = {**self._setup(), "drafter": name}
                return recall(key, lambda: measure(self._decoder, drafter))

            try:
                costs = yield from waited(self._decoder.target_lane.start("measure", costs_of))
            except DeviceError as error:
                _log.warning("the devices could not be measured: %s", error)
                return None
            self._controllers[name] = Controller(costs)
        return self._controllers[name]
