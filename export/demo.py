"""The recipe of the demo pair: a byte-level BPE, a Llama-shaped chat target, and its draft.

Run it as ``python -P -m mirror_edge.export.demo --train FILE --held-out FILE -o FOLDER``. The
target learns the text; the draft is distilled from it. Run again after an interruption, it resumes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from mirror_edge.errors import MirrorEdgeError, OptionError
from mirror_edge.export import DraftShape, Recipe, conversations, distill, texts
from mirror_edge.export.drafts import decoder, load_model
from mirror_edge.export.hardware import move, pick_device
from mirror_edge.export.losses import early_exit_loss
from mirror_edge.export.output import refuse_existing, whole_folder
from mirror_edge.export.schedule import Budget, Schedule
from mirror_edge.export.source import locate, read_json
from mirror_edge.export.training import Checkpoint, Progress, Stage, Stream, train
from mirror_edge.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mirror_edge.export.distillation import Status

__all__ = [
    "CONTEXT",
    "RUN_FILE",
    "SIZES",
    "VOCABULARY",
    "main",
    "save",
    "save_tokenizer",
    "train_target",
    "train_tokenizer",
]

RUN_FILE = "training.json"
VOCABULARY = 4096
CONTEXT = 1024
SIZES = {
    # 4.6M and 1.4M parameters; trains for a few hours on a CPU.
    "small": (
        DraftShape(layers=6, hidden=256, heads=4, kv_heads=2, intermediate=512),
        DraftShape(layers=2, hidden=192, heads=6, kv_heads=2, intermediate=384),
    ),
    # 21M and 1.6M parameters; for a GPU.
    "large": (
        DraftShape(layers=8, hidden=512, heads=8, kv_heads=4, intermediate=1024),
        DraftShape(layers=2, hidden=192, heads=6, kv_heads=2, intermediate=512),
    ),
}
"""Target and draft."""


def train_tokenizer(file: Path) -> Tokenizer:
    """Train a byte-level BPE: every byte has a token, so any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(conversations.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    written = (conversations.render(document.content) for document in texts.documents([file]))
    tokenizer.train_from_iterator(written, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer with its chat template, as Hugging Face folders have them."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=conversations.BEGIN,
        eos_token=conversations.END,
        pad_token=conversations.END,
        chat_template=conversations.CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `model` as a Hugging Face folder."""
    begin, end = (tokenizer.token_to_id(t) for t in (conversations.BEGIN, conversations.END))
    model.generation_config = GenerationConfig(
        bos_token_id=begin, eos_token_id=[end, begin], pad_token_id=end
    )
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def train_target(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    train_file: Path,
    output: Path,
    *,
    minutes: float,
    seed: int,
    compiled: bool,
    continued: bool,
) -> None:
    """Train the target on the text and write it to `output`."""
    with TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        text = Text.read(Path(folder))
    end = tokenizer.token_to_id(conversations.END)
    corpus = texts.read([train_file], text, vocabulary=VOCABULARY, end=end, at_least=CONTEXT + 2)
    _echo(f"{len(corpus.tokens):,} training tokens, on {model.device}")
    rate = 1.5e-3 if continued else 2e-3
    checkpoint = Checkpoint(
        output.with_name(output.name + ".checkpoint"),
        of={"minutes": str(minutes), "seed": str(seed), "tokens": str(len(corpus.tokens))},
    )
    layers = model.config.num_hidden_layers
    loss = early_exit_loss(
        model,
        torch.compile(model, dynamic=False) if compiled else model,
        exits=(layers // 2, round(layers * 2 / 3)),
    )
    run = train(
        model.train(),
        [Stage("target", loss, Stream(corpus.tokens))],
        Schedule(Budget(minutes), learning_rate=rate),
        seed=seed,
        checkpoint=checkpoint,
        on_progress=_Percents(),
    )
    with whole_folder(output, lambda: refuse_existing(output)) as partial:
        save(model.eval(), tokenizer, partial)
        (partial / RUN_FILE).write_text(json.dumps(asdict(run), indent=2) + "\n")
    checkpoint.file.unlink(missing_ok=True)


class _Percents:
    """Prints a line for every percent of a stage."""

    def __init__(self) -> None:
        self.shown: tuple[str, int] | None = None

    def __call__(self, at: Progress | Status) -> None:
        here = (at.stage, int(at.share * 100))
        if here != self.shown:
            self.shown = here
            loss = "" if at.loss is None else f"  loss {at.loss:.3f}"
            accepted = getattr(at, "acceptance", None)
            _echo(
                f"{at.stage} {here[1]:3d} %{loss}"
                + ("" if accepted is None else f"  acceptance {accepted:.3f}")
            )


def _echo(line: str) -> None:
    print(line, flush=True)


def main(
    train_file: Annotated[
        Path, typer.Option("--train", help="Conversations to train on, JSON lines.")
    ],
    held_out_file: Annotated[
        Path, typer.Option("--held-out", help="Held-out conversations, for the report.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    size: Annotated[
        Literal["small", "large"],
        typer.Option(help="Size of the pair: small for a CPU, large for a GPU."),
    ] = "small",
    target_minutes: float = 60.0,
    draft_minutes: float = 25.0,
    continue_from: Annotated[
        Path | None, typer.Option(help="An earlier pair, whose target to continue training.")
    ] = None,
    seed: int = 0,
    compiled: Annotated[bool, typer.Option(help="Use torch.compile; needs a C++ compiler.")] = True,
) -> None:
    """Train the demo pair and write OUTPUT/target, OUTPUT/draft and OUTPUT/report.json."""
    torch.manual_seed(seed)
    device = pick_device("auto")
    target_shape, draft_shape = SIZES[size]
    if not (output / "target").exists():
        if continue_from is None:
            tokenizer = train_tokenizer(train_file)
            named = {"bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 3}
            target: PreTrainedModel = decoder(target_shape, VOCABULARY, CONTEXT, named)
        else:
            earlier = locate(continue_from / "target", "--continue-from", lambda *_: None)
            tokenizer = Tokenizer.from_file(str(earlier.folder / "tokenizer.json"))
            target = load_model(earlier, "--continue-from", torch.float32)
            found = (target.config.num_hidden_layers, target.config.hidden_size)
            if found != (target_shape.layers, target_shape.hidden):
                raise OptionError(
                    f"--continue-from {continue_from}: its target is not of --size {size}. "
                    "Give its own size."
                )
        move(target, device)
        train_target(
            target,
            tokenizer,
            train_file,
            output / "target",
            minutes=target_minutes,
            seed=seed,
            compiled=compiled,
            continued=continue_from is not None,
        )
    made = distill(
        output / "target",
        draft_shape,
        [train_file],
        output / "draft",
        held_out=[held_out_file],
        recipe=Recipe(minutes=draft_minutes, stream_layers=2, seed=seed + 1, compiled=compiled),
        on_progress=_Percents(),
    )
    trained = read_json(output / "target" / RUN_FILE)
    report = {"target": trained, "draft": made.as_dict()}
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    _echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    try:
        typer.run(main)
    except MirrorEdgeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
