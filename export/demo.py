"""The recipe of the demo pair: a byte-level BPE, a Llama-shaped chat target, and its draft.

Run it as ``python -P -m mirror_edge.export.demo --train FILE --held-out FILE -o FOLDER``. The
target learns the text; the draft learns the target's own distribution over the same text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mirror_edge.export import conversations
from mirror_edge.export.training import Loss, Progress, Schedule, held_out_loss, train

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCABULARY = 4096
CONTEXT = 1024


@dataclass(frozen=True)
class Shape:
    """A Llama decoder's dimensions."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int

    def build(self) -> LlamaForCausalLM:
        """A fresh model with tied embeddings."""
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                intermediate_size=self.intermediate,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=3,
                pad_token_id=3,
            )
        )


SIZES = {
    # 4.6M and 0.8M parameters: an hour or two on a CPU.
    "small": (
        Shape(hidden=256, layers=6, heads=4, kv_heads=2, intermediate=512),
        Shape(hidden=128, layers=2, heads=4, kv_heads=2, intermediate=256),
    ),
    # 21M and 1.6M parameters: for a GPU.
    "large": (
        Shape(hidden=512, layers=8, heads=8, kv_heads=4, intermediate=1024),
        Shape(hidden=192, layers=2, heads=6, kv_heads=2, intermediate=512),
    ),
}


def _move(model: torch.nn.Module, device: torch.device) -> None:
    model.to(device)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: every byte has a token, so any text survives the round trip."""
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
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `model` as a Hugging Face folder with the tokenizer and its chat template."""
    end = tokenizer.token_to_id(conversations.END)
    begin = tokenizer.token_to_id(conversations.BEGIN)
    model.generation_config = GenerationConfig(
        bos_token_id=begin, eos_token_id=[end, begin], pad_token_id=end
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=conversations.BEGIN,
        eos_token=conversations.END,
        pad_token=conversations.END,
        chat_template=conversations.CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def text_loss(model: Callable[..., object]) -> Loss:
    """Cross-entropy with the next token."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        logits = model(windows[:, :-1], use_cache=False).logits  # type: ignore[attr-defined]
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    return loss


def distillation_loss(draft: Callable[..., object], target: Callable[..., object]) -> Loss:
    """Cross-entropy with the target's distribution: forward KL plus a constant."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = target(windows[:, :-1], use_cache=False).logits.float()  # type: ignore[attr-defined]
        logits = draft(windows[:, :-1], use_cache=False).logits  # type: ignore[attr-defined]
        return F.cross_entropy(logits.flatten(0, 1).float(), wanted.softmax(dim=-1).flatten(0, 1))

    return loss


@torch.no_grad()
def greedy_agreement(
    draft: LlamaForCausalLM, target: LlamaForCausalLM, stream: NDArray[np.uint16]
) -> float:
    """How often draft and target have the same likeliest next token on held-out text."""
    windows = torch.from_numpy(stream[: len(stream) // 512 * 512].reshape(-1, 512).astype(np.int64))
    same = [
        (draft(w).logits.argmax(-1) == target(w).logits.argmax(-1)).float().mean()
        for w in windows[:64].split(16)
    ]
    return float(torch.stack(same).mean())


def main(
    train_file: Annotated[Path, typer.Option("--train", help="Conversations, JSON lines.")],
    held_out_file: Annotated[Path, typer.Option("--held-out", help="The same, for the report.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    size: Annotated[Literal["small", "large"], typer.Option(help="See SIZES.")] = "small",
    target_minutes: float = 60.0,
    draft_minutes: float = 20.0,
    seed: int = 0,
    compiled: Annotated[bool, typer.Option(help="torch.compile; needs a C++ compiler.")] = True,
) -> None:
    """Train the demo pair and write OUTPUT/target, OUTPUT/draft and OUTPUT/report.json."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    train_texts = list(conversations.read(train_file))
    tokenizer = train_tokenizer([conversations.render(c) for c in train_texts])
    stream = conversations.token_stream(tokenizer, train_texts)
    held_out = conversations.token_stream(tokenizer, list(conversations.read(held_out_file)))
    typer.echo(f"{len(stream):,} training tokens, {len(held_out):,} held out, on {device}")

    def wrapped(model: LlamaForCausalLM) -> Callable[..., object]:
        return torch.compile(model, dynamic=False) if compiled else model

    def show(name: str) -> Callable[[Progress], None]:
        shown = -1

        def on_progress(at: Progress) -> None:
            nonlocal shown
            if (percent := int(at.share * 100)) != shown:
                shown = percent
                typer.echo(f"{name} {percent:3d} %  {at.tokens:>11,} tokens  loss {at.loss:.3f}")

        return on_progress

    target_shape, draft_shape = SIZES[size]
    target = target_shape.build()
    _move(target, device)
    target_tokens = train(
        target,
        text_loss(wrapped(target)),
        stream,
        Schedule(target_minutes),
        seed=seed,
        on_progress=show("target"),
    )
    target.eval()
    save(target, tokenizer, output / "target")

    draft = draft_shape.build()
    _move(draft, device)
    draft_tokens = train(
        draft,
        distillation_loss(wrapped(draft), wrapped(target)),
        stream,
        Schedule(draft_minutes, learning_rate=4e-3),
        seed=seed + 1,
        on_progress=show("draft"),
    )
    draft.eval()
    save(draft, tokenizer, output / "draft")

    for model in (target, draft):
        _move(model, torch.device("cpu"))
    sizes = {
        "target": (target_shape, target, target_tokens),
        "draft": (draft_shape, draft, draft_tokens),
    }
    report = {
        **{
            name: {**asdict(shape), "parameters": model.num_parameters(), "tokens": tokens}
            for name, (shape, model, tokens) in sizes.items()
        },
        "target_held_out_loss": held_out_loss(text_loss(target), held_out),
        "draft_held_out_loss": held_out_loss(text_loss(draft), held_out),
        "greedy_agreement": greedy_agreement(draft, target, held_out),
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    typer.run(main)
