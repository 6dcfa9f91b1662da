"""A bundle's target and plain draft on their devices, to be measured and to answer."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from mirror_edge.answer import Decoder
    from mirror_edge.apps.record import Record
    from mirror_edge.bundle import Bundle, Format
    from mirror_edge.costs import Costs
    from mirror_edge.policy import Strategy
    from mirror_edge.protocols import DraftGraph, Target
    from mirror_edge.rollout import ModelDrafter
    from mirror_edge.stats import Stats

__all__ = ["Measured", "PlainPair", "opened", "opened_target", "plain_device"]


@dataclass(frozen=True)
class Measured:
    """Times in seconds; `hand_over` is one way."""

    costs: Costs
    hand_over: float


@dataclass(frozen=True)
class PlainPair:
    """A target on its lane, and its draft on another one; the draft's streams are not used."""

    on: Decoder
    graph: DraftGraph
    drafter: ModelDrafter
    eos: frozenset[int]

    def measured(self, seconds: float) -> Measured:
        """Measure the forwards for this many seconds, and then the hand-over."""
        from mirror_edge.measuring import measure

        lane = self.on.target_lane
        costs = lane.start("measure", measure, self.on, self.drafter, seconds).result()
        return Measured(costs, lane.start("measure", self._hand_over).result())

    def _hand_over(self) -> float:
        clock, taken = self.on.clock, []
        for _ in range(101):
            began = clock()
            self.on.draft_lane.start("measure", lambda: None).result()
            taken.append((clock() - began) / 2)
        return statistics.median(taken)

    def recorded(
        self, prompt: Sequence[int], new_tokens: int, window: int, candidates: int
    ) -> Record:
        """How the models agree on the answer to a prompt."""
        from mirror_edge.apps.record import Record
        from mirror_edge.apps.replay import Replayer
        from mirror_edge.policy import Speculation
        from mirror_edge.sampling import Sampler, Sampling

        asked = Speculation("mirror", window, candidates, "all")
        sampler, into = Sampler(Sampling(), self.on.target.vocabulary), Record()
        Replayer(self.on, self.graph, asked, self.eos).answer(prompt, new_tokens, sampler, into)
        return into

    def answered(self, prompt: Sequence[int], new_tokens: int, plan: Strategy) -> Stats:
        """A real answer."""
        from mirror_edge.answer import Answer
        from mirror_edge.decode import decode
        from mirror_edge.driving import drive
        from mirror_edge.sampling import Sampler, Sampling

        answer = Answer(
            on=self.on,
            tokens=list(prompt),
            plan=plan,
            sampler=Sampler(Sampling(), self.on.target.vocabulary),
            drafter=None if plan.mode == "ar" else self.drafter,
            eos=self.eos,
            limit=min(len(prompt) + new_tokens, self.on.target.context),
        )
        for _ in drive(decode(answer)):
            pass
        return answer.stats


def plain_device(format: Format) -> str:
    """The device that runs bundles of this format on any system: the CPU.

    For Core ML it is Apple's devices, or on other systems the evaluator.
    """
    here = {"onnx": "cpu", "coreml": "coreml" if sys.platform == "darwin" else "coreml:evaluator"}
    return here[format]


@contextmanager
def opened_target(read: Bundle) -> Iterator[Target]:
    """Open the target alone, on the plain device and all usable cores.

    Raises:
        DeviceError: if the device cannot run it.
    """
    from mirror_edge.devices import Device, runtime_for, usable_cores
    from mirror_edge.trace import Trace

    format = read.manifest.format
    device, threads = Device.parse(plain_device(format)), len(usable_cores())
    target = runtime_for(device, format).open_target(read, device, threads, Trace())
    try:
        yield target
    finally:
        target.close()


@contextmanager
def opened(read: Bundle, target: tuple[str, int], draft: tuple[str, int]) -> Iterator[PlainPair]:
    """Open both models, each on its device and number of threads.

    Raises:
        OptionError: for a bundle without a draft.
        DeviceError: for a device that is unknown, or that cannot run its model.
    """
    from mirror_edge.answer import Decoder
    from mirror_edge.devices import Device, runtime_for
    from mirror_edge.growth import Guesses
    from mirror_edge.lanes import ThreadLane
    from mirror_edge.rollout import ModelDrafter
    from mirror_edge.text import Text
    from mirror_edge.trace import Trace

    if read.manifest.draft is None:
        raise OptionError(f"{read.folder}: has no draft. Export the bundle with --draft.")
    trace, places = Trace(), [Device.parse(name) for name, _ in (target, draft)]
    runtimes = [runtime_for(place, read.manifest.format) for place in places]
    opened = runtimes[0].open_target(read, places[0], target[1], trace)
    graph = runtimes[1].open_draft(read, places[1], draft[1], trace)
    lanes = [
        ThreadLane(name, trace, place.cores)
        for name, place in zip(("target", "draft"), places, strict=True)
    ]
    try:
        decoder = Decoder(opened, lanes[0], lanes[1], trace)
        yield PlainPair(decoder, graph, ModelDrafter(graph, Guesses(0)), Text.of(read).eos)
    finally:
        for lane in lanes:
            lane.close()
        graph.close()
        opened.close()
