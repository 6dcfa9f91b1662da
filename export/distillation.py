"""A draft for a target: trained on text, then on the target's predictions and own outputs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mirror_edge.errors import OptionError
from mirror_edge.export.acceptance import Acceptance, Exam, Losses, StreamAccuracy
from mirror_edge.export.drafts import fresh, load_model, plain, replaced_streams, save, tuned
from mirror_edge.export.hardware import autocast, move, pick_device
from mirror_edge.export.identity import identity
from mirror_edge.export.losses import distillation_loss, streaming_loss, text_loss
from mirror_edge.export.material import Material
from mirror_edge.export.output import refuse_existing, whole_folder
from mirror_edge.export.outputs import OwnOutputs
from mirror_edge.export.recipe import DraftShape, Recipe
from mirror_edge.export.schedule import Budget, Schedule
from mirror_edge.export.source import locate
from mirror_edge.export.streaming import StreamingDraft
from mirror_edge.export.texts import Corpus
from mirror_edge.export.tokenizer import read_tokenizer, refuse_different
from mirror_edge.export.training import Checkpoint, Loss, Progress, Run, Stage, Stream, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mirror_edge.export.drafts import Draft

__all__ = ["REPORT_FILE", "Distilled", "Status", "Volume", "run"]

REPORT_FILE = "distill.json"
_TEXT_SHARE = 0.1
"""Share of a fresh draft's budget in which it learns from the text alone."""
_FRESH_RATE, _TUNED_RATE, _STREAMS_RATE = 4e-3, 5e-4, 4e-3
_NUMBERS_AT_ONCE = {"cpu": 2**27, "mps": 2**27, "cuda": 2**29}
"""Logits per forward in training; 2**27 are half a gigabyte in float32."""
_LONG = 1024
"""Tokens per window in every fourth step, where context and text allow."""
_LOOKS = 20
"""How often acceptance is measured in a run."""


@dataclass(frozen=True)
class Status:
    """The status of a run, for a progress bar."""

    stage: str
    share: float
    """Share done: of the whole budget while training, otherwise of the stage."""
    loss: float | None = None
    acceptance: float | None = None
    """At temperature 0, as last measured."""


@dataclass(frozen=True)
class Volume:
    """How much text there was."""

    documents: int
    tokens: int
    held_out: int
    """Held-out tokens."""
    own_outputs: int
    """Tokens of prompts and the target's answers to them."""


@dataclass(frozen=True)
class Distilled:
    """A finished draft, and how good it is on held-out text."""

    folder: Path
    parameters: int
    run: Run
    volume: Volume
    losses: Losses
    acceptance: Acceptance
    streams: dict[str, StreamAccuracy]
    """By temperature, "0" and "1"; empty for a plain draft."""
    notes: tuple[str, ...]
    """What else the user should know."""

    def as_dict(self) -> dict[str, Any]:
        """As in ``distill.json``: everything except the folder."""
        found = asdict(self)
        del found["folder"]
        return found


def run(
    target: str | Path,
    draft: str | Path | DraftShape,
    data: Sequence[Path],
    output: Path,
    *,
    held_out: Sequence[Path],
    recipe: Recipe,
    on_progress: Callable[[Status], None],
) -> Distilled:
    """See `mirror_edge.export.distill`."""
    refuse_existing(output)
    if recipe.lossless and isinstance(draft, DraftShape):
        raise OptionError("--lossless: keeps a draft's own predictions, so it needs --draft.")
    device = pick_device(recipe.device)
    if recipe.compiled and device.type == "cpu" and not _has_compiler():
        raise OptionError(
            "--compile: needs a C++ compiler on a CPU. Install one, or omit the option."
        )

    def downloading(stage: str, share: float) -> None:
        on_progress(Status(stage, share))

    of_target = locate(target, "--target", downloading)
    of_draft = None if isinstance(draft, DraftShape) else locate(draft, "--draft", downloading)
    tokenizer = read_tokenizer(of_target)
    if of_draft is not None:
        refuse_different(tokenizer, read_tokenizer(of_draft))

    checkpoint = Checkpoint(
        output.with_name(output.name + ".checkpoint"),
        recipe.checkpoint_seconds,
        identity(of_target, of_draft or draft, data, recipe),
    )
    resumed = checkpoint.load(torch.device("cpu")) is not None

    on_progress(Status("Reading text", 0.0))
    material = Material.read(of_target, tokenizer, data, held_out, recipe)

    on_progress(Status("Loading models", 0.0))
    torch.manual_seed(recipe.seed)
    fast = isinstance(autocast(device), torch.autocast)
    teacher = load_model(of_target, "--target", torch.bfloat16 if fast else torch.float32)
    teacher.eval().requires_grad_(False)
    if isinstance(draft, DraftShape):
        student = fresh(draft, teacher, recipe)
    else:
        assert of_draft is not None
        student = tuned(of_draft, recipe)
    for model in (teacher, student):
        move(model, device)

    on_progress(Status("Answering held-out prompts", 0.0))
    exam = Exam.of(teacher, material.held_out, material.ends)
    own = OwnOutputs(
        teacher,
        material.text.tokens,
        material.text.prompts,
        ends=material.ends,
        part=recipe.own_outputs,
        time_share=recipe.generation,
        seed=recipe.seed,
    )
    student.train()
    ran = train(
        student,
        _stages(student, teacher, material.text, own, recipe, tuned=of_draft is not None),
        _schedule(student, teacher, material, recipe, tuned=of_draft is not None),
        seed=recipe.seed,
        checkpoint=checkpoint,
        on_progress=_Reporter(student, exam, on_progress),
    )
    student.eval()

    volume = Volume(
        material.text.documents,
        len(material.text.tokens),
        len(material.held_out.tokens),
        own.count,
    )
    parameters = sum(p.numel() for p in student.parameters())
    notes = _notes(volume, ran, parameters, fresh=of_draft is None)
    if of_draft is not None:
        notes += replaced_streams(of_draft, recipe)
    if resumed:
        notes.insert(0, f"The run was resumed from {checkpoint.file}.")
    found = exam.grade(student, teacher, lambda share: on_progress(Status("Measuring", share)))
    made = Distilled(output, parameters, ran, volume, *found, notes=tuple(notes))
    with whole_folder(output, lambda: _refuse_created(output, checkpoint)) as partial:
        unchanged = of_draft if recipe.lossless else None
        save(student, partial, of_target, tokenizer, unchanged=unchanged)
        (partial / REPORT_FILE).write_text(json.dumps(made.as_dict(), indent=2) + "\n")
    checkpoint.file.unlink(missing_ok=True)
    return made


def _stages(
    student: Draft,
    teacher: PreTrainedModel,
    text: Corpus,
    own: OwnOutputs,
    recipe: Recipe,
    *,
    tuned: bool,
) -> list[Stage]:
    def compiled(loss: Loss) -> Loss:
        return torch.compile(loss, dynamic=False) if recipe.compiled else loss

    if recipe.lossless:
        assert isinstance(student, StreamingDraft)
        return [Stage("streams", compiled(streaming_loss(student)), own)]
    learning = distillation_loss(student, teacher, recipe.stream_weight)
    distillation = Stage("distillation", compiled(learning), own)
    if tuned:
        return [distillation]
    reading = compiled(text_loss(plain(student)))
    return [Stage("text", reading, Stream(text.tokens), _TEXT_SHARE), distillation]


def _schedule(
    student: Draft,
    teacher: PreTrainedModel,
    material: Material,
    recipe: Recipe,
    *,
    tuned: bool,
) -> Schedule:
    config: Any = plain(student).config
    rate = _STREAMS_RATE if recipe.lossless else _TUNED_RATE if tuned else _FRESH_RATE
    context = min(config.max_position_embeddings, teacher.config.max_position_embeddings)
    numbers = _NUMBERS_AT_ONCE[teacher.device.type]
    return Schedule(
        Budget(recipe.minutes, recipe.tokens),
        learning_rate=recipe.learning_rate or rate,
        batch=recipe.batch,
        length=material.length,
        long_length=max(material.length, min(_LONG, context, len(material.text.tokens) // 8)),
        rows_at_once=numbers // config.vocab_size,
    )


class _Reporter:
    """Passes training progress on, with the acceptance as last measured."""

    def __init__(self, student: Draft, exam: Exam, on_progress: Callable[[Status], None]) -> None:
        self.student, self.exam, self.on_progress = student, exam, on_progress
        self.looks = 0
        self.acceptance: float | None = None

    def __call__(self, at: Progress) -> None:
        if at.share * _LOOKS >= self.looks + 1:
            self.looks = int(at.share * _LOOKS)
            self.student.eval()
            self.acceptance = self.exam.agreement(self.student)
            self.student.train()
        self.on_progress(Status(at.stage, at.share, at.loss, self.acceptance))


def _notes(volume: Volume, ran: Run, parameters: int, *, fresh: bool) -> list[str]:
    """Notes on what the amounts of text and training mean for the draft."""
    notes = []
    passes = ran.tokens / (volume.tokens + volume.own_outputs)
    if passes > 8:
        notes.append(
            f"Every token was seen {passes:.0f} times. More text would help more than more time."
        )
    if volume.tokens < 1_000_000:
        notes.append(
            f"{volume.tokens:,} tokens of text are few: expect the draft to do worse than "
            "this report on any other kind of text."
        )
    if fresh and ran.tokens < 10 * parameters:
        notes.append(
            f"A fresh draft of {parameters:,} parameters saw {ran.tokens:,} tokens; 10 to 20 per "
            "parameter are usual. It would keep improving with more time."
        )
    return notes


def _refuse_created(output: Path, checkpoint: Checkpoint) -> None:
    """Refuse to replace what was created at `output` during hours of training."""
    if output.exists():
        raise OptionError(
            f"-o {output}: was created while the draft was trained. Move it away and run the same "
            f"command again: {checkpoint.file} keeps what was trained."
        )


def _has_compiler() -> bool:
    named = (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")
    return any(name and shutil.which(name) for name in named)
