"""Tiny random models: one checkpoint an architecture, with one small tokenizer for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 320
TEXT = "the quick brown fox jumps over the lazy dog and the slow grey wolf sleeps under the old oak"
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    # Wide, so that attention moves the logits as much as the embedding does.
    "initializer_range": 0.12,
}

Checkpoint = Callable[..., Path]


def make_tokenizer(text: str = TEXT, vocabulary: int = 300) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or make_tokenizer()).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_checkpoint(folder: Path, architecture: str, config: dict[str, Any]) -> Path:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(len(config))
    settings = getattr(transformers, f"{architecture}Config")(**{**SHAPE, **config})
    model = getattr(transformers, f"{architecture}ForCausalLM")(settings)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # transformers starts them at zero, where they test nothing
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder
