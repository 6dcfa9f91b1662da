"""The embedded API: load a bundle, generate, stream."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from mirror_edge import bundle as bundles
from mirror_edge.answer import Answer
from mirror_edge.choosing import choose
from mirror_edge.controller import Controller
from mirror_edge.costs import Costs
from mirror_edge.devices import Device
from mirror_edge.driving import Parts, drive, drive_async, waited
from mirror_edge.errors import BusyError, ClosedError, OptionError
from mirror_edge.memory import fitted
from mirror_edge.pair import Pair
from mirror_edge.policy import DrafterName, Speculation
from mirror_edge.request import answer_to, tokens_of
from mirror_edge.result import AnswerOptions, Chunk, Prompt, Result, chunks
from mirror_edge.stops import StopStrings
from mirror_edge.text import Text
from mirror_edge.trace import Trace
from mirror_edge.tuning import Tuning
from mirror_edge.vouched import open_bundle

__all__ = ["Model", "load"]


def load(
    bundle: str | Path | None = None,
    *,
    target_device: str = "auto",
    draft_device: str = "auto",
    target_threads: int | None = None,
    draft_threads: int | None = None,
    draft_process: bool | None = None,
    context: int | None = None,
    verify: bool = True,
    on_progress: Callable[[str], None] | None = None,
) -> Model:
    """Load a bundle (by default the pair that comes with the package) onto its devices.

    A device is `cpu`, or `cpu:0`, `cpu:0-3` to confine it to cores, or one of those that
    `mirror-edge devices` lists; `auto` picks the fastest, by what is measured once. A bundle for
    Core ML runs on `coreml:gpu`, `coreml:ane`, `coreml:cpu` or `coreml:all`; there `auto` is the
    GPU for the target and the Neural Engine for the draft. On the CPU each model has all the cores
    of its device by default (minus one beside another kind of device), and a small draft fewer
    threads. With `draft_process` the draft runs in a child process, so that a driver crash cannot
    end an answer; None leaves this to its device.

    `context` is the maximum number of tokens of prompt and answer together; None is the model's own
    limit, or what fits in memory, in which case `on_progress` hears of it. With `verify` the
    SHA-256 of every file is checked, at first use and again when a file has changed. `on_progress`
    hears, one line each, what takes long, here and before the first answer, and what was chosen.

    Raises:
        BundleError: for a damaged or unknown bundle.
        DeviceError: for a device that is unknown, absent or cannot run all of a graph, or too
            little memory.
        OptionError: for an option that cannot be honoured.
    """
    for name, device in (("target_device", target_device), ("draft_device", draft_device)):
        if not isinstance(device, str):
            raise OptionError(
                f"{name} is {device!r}; it must be a string, such as 'auto' or 'cpu'."
            )
    if draft_process not in (None, True, False):
        raise OptionError(f"draft_process is {draft_process!r}; it must be True or False.")
    read = open_bundle(bundles.demo() if bundle is None else Path(bundle), verify=verify)
    if read.manifest.draft is None:
        _refuse_for_draft(read.folder, draft_device, draft_threads, draft_process)
    say = on_progress or (lambda _: None)
    read = fitted(read, context, say)
    choice = choose(read, target_device, draft_device, say)
    if choice.reason:
        say(choice.reason)
    return Model(
        read,
        choice.target,
        choice.draft,
        target_threads,
        draft_threads,
        draft_process,
        choice=choice.reason,
        on_progress=say,
    )


def _refuse_for_draft(folder: Path, device: str, threads: int | None, process: bool | None) -> None:
    """Refuse options about the draft of a bundle that has none."""
    named = None if device == "auto" else device
    asked = {"draft_device": named, "draft_threads": threads, "draft_process": process or None}
    for name, value in asked.items():
        if value is not None:
            raise OptionError(f"{name} is {value!r}, but {folder} has no draft; leave it out.")


def _abandoned(pair: Pair, process: int) -> None:
    """End the threads and processes of a model that was dropped without being closed."""
    if os.getpid() != process:
        return
    # On a thread, since the garbage may be collected on one that would wait for itself.
    threading.Thread(target=pair.release, name="release", daemon=True).start()


class Model:
    """A loaded bundle. It gives one answer at a time; as a context manager it frees the devices."""

    def __init__(
        self,
        bundle: bundles.Bundle,
        target_device: Device,
        draft_device: Device,
        target_threads: int | None = None,
        draft_threads: int | None = None,
        draft_process: bool | None = None,
        *,
        choice: str = "",
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open the graphs; `load` is the usual way here."""
        self.bundle = bundle
        self.choice = choice
        """Which devices `auto` chose and why, in one line; empty if there was no choice."""
        self._text = Text.of(bundle)
        self._pair = Pair(
            bundle, target_device, draft_device, target_threads, draft_threads, draft_process
        )
        self._tuning = Tuning(self._pair.decoder, self._pair.key, on_progress)
        self._busy = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        self._dropped = weakref.finalize(self, _abandoned, self._pair, self._process)
        self._dropped.atexit = False

    @property
    def context(self) -> int:
        """The maximum number of tokens of prompt and answer together."""
        return self._pair.decoder.target.context

    @property
    def placement(self) -> Mapping[str, Mapping[str, int]]:
        """How many nodes of each graph run on which provider."""
        return self._pair.trace.placed

    @property
    def has_draft(self) -> bool:
        """Whether the bundle came with a draft model."""
        return self.bundle.manifest.draft is not None

    @property
    def trace(self) -> Trace:
        """What ran when; its `keep` has it remember."""
        return self._pair.trace

    def costs(self, drafter: DrafterName = "model") -> Costs | None:
        """What forwards take on these devices, in seconds; measured once, in a few seconds.

        None if the devices could not be measured.

        Raises:
            BusyError: while an answer is under way.
            OptionError: for a draft model that the bundle does not have.
        """
        self._refuse_if_closed()
        if drafter not in self._pair.drafters:
            raise OptionError(f"drafter is {drafter!r}, which {self.bundle.folder} does not have.")

        def measured() -> Parts[Controller | None]:
            yield (yield from self._tuning.controller(drafter, self._pair.drafters[drafter]))

        with self._alone():
            (controller,) = drive(measured())
        return None if controller is None else controller.costs

    def tokenize(self, prompt: Prompt, template: Mapping[str, Any] | None = None) -> list[int]:
        """The tokens that a prompt becomes; see `generate`."""
        return tokens_of(prompt, self._text, template)

    def generate(
        self,
        prompt: Prompt,
        *,
        on_chunk: Callable[[Chunk], None] | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Result:
        """Answer, and return the whole; `on_chunk` hears each piece as it comes.

        Raises:
            ContextError: for a prompt that is empty or longer than the context.
            MissingExtraError: for a grammar, without llguidance.
            OptionError: for options that cannot be honoured.
            TemplateError: for messages that the chat template refuses.
            BusyError: while another answer is under way.
        """
        parts: list[Chunk] = []
        answer, decoded = self._answer(prompt, options)
        with closing(drive(decoded)) as driven:
            for chunk in driven:
                parts.append(chunk)
                if on_chunk is not None:
                    on_chunk(chunk)
        return Result(
            text="".join(part.text for part in parts),
            tokens=tuple(token for part in parts for token in part.tokens),
            finish_reason=str(parts[-1].finish_reason),
            mode=(options.get("speculation") or Speculation()).mode,
            stats=answer.stats,
        )

    def stream(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> Generator[Chunk]:
        """Answer piece by piece; the iterator may be closed at any time. Raises as `generate`."""
        return drive(self._answer(prompt, options)[1])

    def astream(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> AsyncGenerator[Chunk]:
        """Answer piece by piece on the running event loop; can be cancelled at any `await`.

        To leave it early, use `contextlib.aclosing`; otherwise the model stays busy until the event
        loop has cleaned up.
        """
        return drive_async(self._answer(prompt, options)[1])

    def close(self) -> None:
        """End the lanes and free the devices; an answer in progress ends with a `ClosedError`."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._dropped.detach()
        self._pair.end_lanes()
        try:
            self._tuning.keep()
        finally:
            self._pair.release()

    def __enter__(self) -> Self:
        """The model itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _answer(self, prompt: Prompt, options: AnswerOptions) -> tuple[Answer, Parts[Chunk]]:
        """Check everything that can be refused, before a device is touched."""
        self._refuse_if_closed()
        if unknown := options.keys() - AnswerOptions.__annotations__.keys():
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        stops = StopStrings(options.get("stop") or ())
        tokens = [] if prompt == "" else self.tokenize(prompt, options.get("template"))
        answer = answer_to(tokens, self._text, self._pair, options)
        asked = options.get("speculation") or Speculation()
        drafter = asked.drafter or ("model" if self.has_draft else "ngram")
        return answer, self._decoded(answer, drafter, stops)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClosedError("the model was closed; load it again.")
        if os.getpid() != self._process:
            raise ClosedError(
                "this model was loaded in another process (before a fork); "
                "load it again in this one."
            )

    def _decoded(self, answer: Answer, drafter: str, stops: StopStrings) -> Parts[Chunk]:
        pair = self._pair
        with self._alone():
            self._refuse_if_closed()  # It may have been, since the answer was asked for.
            plans = [plan for plan in (answer.plan, *answer.choices) if plan.mode == "mirror"]
            if any(plan.exit_head == "draft" for plan in plans):
                yield from waited(pair.decoder.draft_lane.start("open", pair.open_exit_head))
            if len(answer.choices) > 1:
                answer.controller = yield from self._tuning.controller(
                    drafter, pair.drafters[drafter]
                )
            yield from chunks(answer, self._text, stops)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have the devices to oneself, or be refused."""
        if not self._busy.acquire(blocking=False):
            raise BusyError(
                "this model is already generating an answer; wait for it, or load the model again."
            )
        try:
            yield
        finally:
            self._busy.release()
