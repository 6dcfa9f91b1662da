"""The options of `mirror-edge bench`, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirror_edge.apps.bench.peers import Peer
    from mirror_edge.apps.bench.questions import Question
    from mirror_edge.text import Text

__all__ = ["FileOptions", "PeerOptions", "QuestionOptions"]


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked, how often, and how long an answer may be."""

    questions: Annotated[
        Path | None,
        typer.Option(
            help="Questions in Spec-Bench's format, question.jsonl (default: twelve of our own)."
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use only the first N questions of each group that fit."),
    ] = None
    repeat: Annotated[int, typer.Option(min=1, help="How often to ask all questions.")] = 3
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens per turn.")] = 128

    def read(self) -> list[Question]:
        """All questions of the file.

        Raises:
            DataError: naming the file and the first line that cannot be used.
        """
        from mirror_edge.apps.bench.questions import SHIPPED, read

        return read(self.questions or SHIPPED)

    def chosen(
        self, questions: Sequence[Question], text: Text, context: int
    ) -> tuple[list[Question], list[Question]]:
        """Those to ask, and those that might not fit into a context of this many tokens.

        Raises:
            ContextError: if none fits.
        """
        from mirror_edge.apps.bench.questions import choose
        from mirror_edge.apps.bench.rounds import fits
        from mirror_edge.errors import ContextError

        most = self.max_new_tokens
        chosen, passed = choose(questions, self.limit, lambda one: fits(one, text, context, most))
        if not chosen:
            raise ContextError(
                f"no question fits into the context of {context:,} tokens with answers of {most:,} "
                "tokens; lower --max-new-tokens."
            )
        return chosen, passed


@dataclass(frozen=True)
class PeerOptions:
    """Other programs to compare with."""

    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime-genai=FOLDER, llama.cpp=FILE.gguf or transformers=TARGET[,DRAFT]; "
            "repeatable."
        ),
    ] = None
    peer_threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads per peer (default: as many as the target has cores)."),
    ] = None

    def opened(self, text: Text, threads: int) -> list[Peer]:
        """The peers, each on this number of threads; `text` is the bundle's.

        Raises:
            MirrorEdgeError: naming a peer that is unknown, not installed, named twice, or whose
                model cannot be read.
        """
        from mirror_edge.apps.bench import peers
        from mirror_edge.errors import OptionError

        opened = [peers.peer(asked, text, threads) for asked in self.peer or ()]
        if len({one.name for one in opened}) < len(opened):
            raise OptionError("--peer: name every peer only once.")
        return opened


@dataclass(frozen=True)
class FileOptions:
    """Where the results are written."""

    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this JSON file.")
    ] = None
    html: Annotated[
        Path | None, typer.Option(help="Write a report with plots to this HTML file.")
    ] = None
