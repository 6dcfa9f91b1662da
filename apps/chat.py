"""`mirror-edge chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror_edge.apps import options
from mirror_edge.apps.groups import spread
from mirror_edge.errors import ContextError, MirrorEdgeError, TemplateError

if TYPE_CHECKING:
    from mirror_edge import AnswerOptions, Message, Model
    from mirror_edge.stats import Stats

HELP = "/stats shows figures of the last answer, /reset starts over, /quit exits."


@dataclass(frozen=True)
class ChatSampling(options.SamplingOptions):
    """A chat is livelier by default."""

    temperature: options.Temperature = 0.7
    min_p: options.MinP = 0.05


@spread
def chat_command(
    bundle: options.Bundle = None,
    *,
    mode: options.Mode = "auto",
    sampling: ChatSampling,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.")] = 512,
    stop: options.Stop = None,
    form: options.GrammarOptions,
    speculation: options.SpeculationOptions,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    template: options.Template = None,
    devices: options.DeviceOptions,
) -> None:
    """Talk to a model. Ctrl-C stops an answer; /quit or Ctrl-D exits."""
    how, plan, grammar = sampling.checked(), speculation.checked(mode), form.checked()
    variables = options.template_variables(template)
    with suppress(ImportError):  # With it `input` edits lines and recalls earlier ones.
        import readline  # noqa: F401
    with devices.load(bundle) as model:
        answering: AnswerOptions = {
            "max_new_tokens": max_new_tokens,
            "sampling": how,
            "speculation": plan,
            "stop": stop or (),
            "grammar": grammar,
            "template": variables,
        }
        chat = Chat(model, system, answering)
        chat.check()
        typer.echo(f"{model.bundle.manifest.name}. {HELP}", err=True)
        while (line := _ask()) is not None:
            if line == "/quit":
                break
            if line == "/reset":
                chat.reset()
            elif line == "/stats":
                figures = {} if chat.stats is None else chat.stats.as_dict()
                typer.echo(json.dumps(figures, indent=2))
            elif line.startswith("/"):
                typer.echo(HELP, err=True)
            elif line.strip():
                try:
                    chat.answer(line)
                except KeyboardInterrupt:
                    typer.echo(" [stopped]", err=True)


class Chat:
    """A conversation: its messages, and how they are answered."""

    def __init__(self, model: Model, system: str | None, answering: AnswerOptions) -> None:
        """Begin with the system message, if any; `answering` are the options of `stream`."""
        self._model, self._answering = model, answering
        self._first: list[Any] = [{"role": "system", "content": system}] if system else []
        self.stats: Stats | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self.messages = list(self._first)

    def check(self) -> None:
        """Refuse now what would be refused for every line.

        Raises:
            MirrorEdgeError: naming the option that cannot be honoured.
        """
        hello: Message = {"role": "user", "content": "Hello"}
        self._model.stream([hello], **self._answering).close()
        try:
            self._model.stream([*self._first, hello], **self._answering).close()
        except (ContextError, TemplateError) as error:
            raise type(error)(f"--system: {error}") from error

    def answer(self, line: str) -> None:
        """Answer `line` on the terminal; a refused one leaves the conversation as it was."""
        said, tokens, stopped = list[str](), 0, False
        try:
            asked, gone = self._fitting(line)
            parts = self._model.stream(asked, **self._answering)
            with _ctrl_c(said) as wish, closing(parts):
                for chunk in parts:
                    if gone and not said:
                        note = f"[the context is full: {gone} messages are forgotten]"
                        typer.echo(note, err=True)
                    said.append(chunk.text)
                    tokens += len(chunk.tokens)
                    typer.echo(chunk.text, nl=False)
                    self.stats = chunk.stats
                    if stopped := wish.is_set():
                        break
        except MirrorEdgeError as error:
            typer.echo(f"error: {error}", err=True)
            return
        if stopped:
            typer.echo(" [stopped]", nl=False, err=True)
        elif chunk.finish_reason == "length":
            limited = tokens == self._answering.get("max_new_tokens")
            why = "--max-new-tokens" if limited else "the context is full"
            typer.echo(f" [cut off: {why}]", nl=False, err=True)
        typer.echo()
        self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]

    def _fitting(self, line: str) -> tuple[list[Any], int]:
        """The messages with `line`, and how many are left out.

        Once the context has no room left for them and an answer, so many of the oldest turns are
        left out that half of it is free: after that, all of the rest has to be read again.
        """
        context = self._model.context
        most = min(self._answering.get("max_new_tokens") or context, context // 4)
        turns, gone = self.messages[len(self._first) :], 0
        asked = [*self.messages, {"role": "user", "content": line}]
        while turns[gone:] and context - self._tokens(asked) < (context // 2 if gone else most):
            gone += 2
            asked = [*self._first, *turns[gone:], {"role": "user", "content": line}]
        return asked, gone

    def _tokens(self, messages: list[Any]) -> int:
        return len(self._model.tokenize(messages, self._answering.get("template")))


@contextmanager
def _ctrl_c(said: list[str]) -> Iterator[Event]:
    """Ctrl-C sets the event, rather than to raise wherever the program happens to be.

    It does raise while nothing has been `said`: a long prompt is being read.
    """
    stopped = Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not said or stopped.is_set():
            signal.default_int_handler(number, frame)
        stopped.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _ask() -> str | None:
    """A line from the user; None at the end of input."""
    while True:
        try:
            line = input("> ").removesuffix("\r")
            line.encode()  # Bytes that are not text may have come as halves of characters.
            return line
        except EOFError:
            typer.echo()
            return None
        except KeyboardInterrupt:
            typer.echo("\n(/quit exits)", err=True)
        except UnicodeError:
            typer.echo(f"error: that line is not {sys.stdin.encoding} text", err=True)
