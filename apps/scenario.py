"""The options of `mirror-edge simulate`, in groups: how the models agree, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror_edge.errors import OptionError

if TYPE_CHECKING:
    from mirror_edge.apps.plan import Plan
    from mirror_edge.runtimes.profile import Profile
    from mirror_edge.runtimes.scripts import Script

__all__ = ["AgreementOptions", "AnswerOptions"]

_STATED = "(default: from the profile)"


@dataclass(frozen=True)
class AgreementOptions:
    """How the models agree: as stated, or as recorded."""

    agreement: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help=f"How often the draft predicts the target's token {_STATED}."
        ),
    ] = None
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help=f"How often the target's token is among the exit head's best 8 {_STATED}.",
        ),
    ] = None
    recording: Annotated[
        Path | None, typer.Option(help="A recorded answer instead of a stated agreement.")
    ] = None

    def script(self, profile: Profile, seed: int) -> tuple[Script, int | None]:
        """What the models say, and the tokens of text that there are (None: no end).

        Raises:
            OptionError: for a recording and a stated agreement.
            MirrorEdgeError: for a recording that cannot be read.
        """
        from mirror_edge.runtimes.profile import coverage_law
        from mirror_edge.runtimes.recording import Recording
        from mirror_edge.runtimes.scripts import RecordedScript, StatedScript

        stated = profile.text
        if self.recording is None:
            agreement = stated.agreement if self.agreement is None else self.agreement
            law = stated.coverage if self.coverage is None else coverage_law(self.coverage)
            return StatedScript(agreement, law, stated.streams, seed), None
        if self.agreement is not None or self.coverage is not None:
            raise OptionError(
                "--recording already determines agreement; drop --agreement and --coverage."
            )
        found = Recording.read(self.recording)
        return RecordedScript(found.draft, found.exit, stated.streams), len(found.draft)

    def about(self, profile: Profile) -> dict[str, Any]:
        """What the figures state."""
        if self.recording is not None:
            return {"recording": str(self.recording)}
        text = profile.text
        return {
            "agreement": text.agreement if self.agreement is None else self.agreement,
            "coverage": text.coverage[:8][-1] if self.coverage is None else self.coverage,
        }


@dataclass(frozen=True)
class AnswerOptions:
    """The answer that is simulated, and the settings of mode `mirror`."""

    window: Annotated[int | None, typer.Option(min=1, help=f"γ {_STATED}.")] = None
    candidates: Annotated[int | None, typer.Option(min=1, help=f"κ {_STATED}.")] = None
    branches: Annotated[str | None, typer.Option(help=f"R, or 'all' {_STATED}.")] = None
    head_start: Annotated[
        bool, typer.Option(help="Give the draft a head start in the sweeps and the picture.")
    ] = False
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 64
    new_tokens: Annotated[int, typer.Option(min=8, help="Tokens of the answer.")] = 768
    seed: Annotated[int, typer.Option(help="One seed, one text.")] = 0

    def plan(self, profile: Profile, agreement: AgreementOptions) -> Plan:
        """What is simulated.

        Raises:
            MirrorEdgeError: naming the option that cannot be honoured.
        """
        from mirror_edge.apps.plan import Plan

        branches = self._branches(profile.branches)
        script, places = agreement.script(profile, self.seed)
        prompt, answer = self.prompt_tokens, self.new_tokens
        if places is not None:
            prompt, answer = 1, min(answer, places - 1)
        return Plan(
            profile=profile,
            script=script,
            window=self.window or profile.window,
            candidates=self.candidates or profile.candidates,
            branches=branches,
            streams=len(profile.text.streams),
            head_start=self.head_start,
            prompt_tokens=prompt,
            new_tokens=answer,
        )

    def _branches(self, stated: int | None) -> int | None:
        asked = self.branches
        if asked is None:
            return stated
        if asked != "all" and not (asked.isdecimal() and int(asked) > 0):
            raise OptionError(
                f"--branches is {asked!r}; it must be a number of at least 1, or 'all'."
            )
        return None if asked == "all" else int(asked)
