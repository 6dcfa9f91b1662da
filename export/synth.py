"""A planted pair: two checkpoints of a real size that agree as often as specified.

Forwards, verification and memory cost what they do at that size; only the language is artificial.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerFast

from mirror_edge.errors import OptionError
from mirror_edge.export import conversations
from mirror_edge.export.exit_tokens import FULL_VOCABULARY
from mirror_edge.export.output import refuse_taken, refuse_without_space, whole_folder
from mirror_edge.export.planted import (
    Planting,
    draft_planting,
    make_language,
    target_planting,
    weight,
)
from mirror_edge.export.shapes import CONTEXT, Shape, shape_of
from mirror_edge.export.shards import DType, size, write_checkpoint
from mirror_edge.export.source import OnProgress
from mirror_edge.export.words import BYTES, CHAT_TEMPLATE, FIRST_WORD, made_up_tokenizer

__all__ = ["Asked", "Pair", "synth"]

_LABEL = "planted.json"
"""The file with what was asked for, by which a planted pair is recognised."""


@dataclass(frozen=True)
class Asked:
    """What a pair was planted with.

    It is kept in the pair's configuration files, and in those of bundles made from it.
    """

    target_shape: str
    draft_shape: str
    agreement: float
    """The share of tokens after which the draft predicts what the target does."""
    exit_coverage: float
    """The share of tokens after which that is among the exit head's 8 most likely."""
    seed: int

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for option, share in (
            ("--agreement", self.agreement),
            ("--exit-coverage", self.exit_coverage),
        ):
            if not 0.0 <= share <= 1.0:
                raise OptionError(f"{option} {share}: must be a share, from 0 to 1.")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: must be 0 or more.")


@dataclass(frozen=True)
class Pair:
    """A written pair."""

    folder: Path
    target_parameters: int
    draft_parameters: int


def synth(
    asked: Asked, output: str | Path, *, dtype: DType, force: bool, on_progress: OnProgress
) -> Pair:
    """Write OUTPUT/target and OUTPUT/draft, or nothing at all; equal `asked`, equal pairs.

    Raises:
        OptionError: a shape or an output that cannot be honoured.
        ExportError: too little disk.
    """
    output = Path(output).expanduser()
    refuse = partial(refuse_taken, output, force=force, label=_LABEL, kind="planted pair")
    refuse()
    target = shape_of(asked.target_shape, "--target-shape")
    draft = shape_of(asked.draft_shape, "--draft-shape", target.vocabulary)
    if target.layers < 2:
        raise OptionError(
            f"--target-shape {asked.target_shape}: must have at least two layers, since a target "
            "is cut between two."
        )
    # An exit head of limited size names the lowest ids, so the cycle is among these.
    words = range(FIRST_WORD, min(target.vocabulary, FULL_VOCABULARY))
    language = make_language(
        target.vocabulary, words, asked.agreement, asked.exit_coverage, asked.seed
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made_up_tokenizer(target.vocabulary),
        bos_token=conversations.BEGIN,
        eos_token=conversations.END,
        pad_token=conversations.END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        planted=asdict(asked),
    )
    models = {
        "target": (target, target_planting(language, BYTES, f"{asked.seed} target")),
        "draft": (draft, draft_planting(language, f"{asked.seed} draft")),
    }
    with whole_folder(output, refuse) as folder:
        needed = sum(size(shape.config(), dtype) for shape, _ in models.values())
        refuse_without_space(output, needed)
        count = {}
        for role, (shape, planting) in models.items():
            report = partial(on_progress, f"Writing the {role}")
            count[role] = _write(folder / role, shape, planting, asked, dtype, report)
            tokenizer.save_pretrained(folder / role)
        (folder / _LABEL).write_text(json.dumps(asdict(asked), indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(asked), encoding="utf-8")
    return Pair(output, count["target"], count["draft"])


def _write(
    folder: Path,
    shape: Shape,
    planting: Planting,
    asked: Asked,
    dtype: DType,
    on_share: Callable[[float], None],
) -> int:
    begin, _, _, end = range(len(conversations.SPECIAL_TOKENS))
    special = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    config = shape.config(planted=asdict(asked), **special)
    GenerationConfig(**special).save_pretrained(folder)
    made = partial(weight, layers=shape.layers, planting=planting)
    return write_checkpoint(folder, config, made, dtype, on_share)


def _card(asked: Asked) -> str:
    return f"""# A planted pair

Random weights, made by `mirror-edge synth` to benchmark a model size. **It knows no language**:
every token is always followed by one particular other, and its answers are made-up words.

| asked for | |
|---|---|
| shape of the target | {asked.target_shape} |
| shape of the draft | {asked.draft_shape} |
| draft and target agree on a token | {asked.agreement:g} |
| the next token is among the exit head's 8 most likely | {asked.exit_coverage:g} |
| seed | {asked.seed} |

Say so wherever you publish a measurement of it.
"""
