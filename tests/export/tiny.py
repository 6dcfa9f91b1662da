"""Tiny random models: one checkpoint an architecture, with one small tokenizer for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mirror_edge.export.streams import Streams

if TYPE_CHECKING:
    from mirror_edge.export.streaming import StreamingDraft

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

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama untied": ("Llama", {"tie_word_embeddings": False}),
    "llama with llama3 rope": ("Llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"tie_word_embeddings": False, "sliding_window": None}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 untied": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
}
"""Those that Core ML programs are made of too."""

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 128,
}
WINDOWS = {"sliding_window": 80, "head_dim": 16}
"""Shorter than the texts of the tests, longer than those behind which guesses branch."""
GEMMA = {**WINDOWS, "query_pre_attn_scalar": 16}
FAMILIES = PLAIN | {
    "mistral with a window": ("Mistral", {"sliding_window": 80}),
    "phi3 with a window": (
        "Phi3",
        {
            "sliding_window": 80,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 256,
        },
    ),
    "qwen2 with windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 80, "max_window_layers": 1},
    ),
    "qwen3 with yarn": (
        "Qwen3",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama with linear positions": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": (
        "Gemma3Text",
        {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3 with stretched positions": (
        "Gemma3Text",
        {
            **GEMMA,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3 with longrope": (
        "Phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 128,
            "rope_parameters": LONGROPE,
        },
    ),
    "gpt-oss": ("GptOss", {**WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
    ),
    "ernie 4.5": ("Ernie4_5", {}),
    "smollm3": (
        "SmolLM3",
        {"no_rope_layers": [1, 0, 1], "num_hidden_layers": 3, "pad_token_id": 1},
    ),
    "smollm3 with windows": (
        "SmolLM3",
        {
            "no_rope_layers": [1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 80,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        },
    ),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 16}),
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
    model = transformers.AutoModelForCausalLM.from_config(settings)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # transformers starts them at zero, where they test nothing
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def random_streams(count: int, layers: int, hidden: int = 64, rank: int = 8) -> Streams:
    """Streams as wide as the residual itself, so that a wrong one shows."""
    draw = np.random.default_rng(count)
    shapes = {"offset": (count, hidden), "down": (hidden, rank), "up": (count, rank, hidden)}
    weights = {name: draw.standard_normal(shape) for name, shape in shapes.items()}
    scale = {"offset": 0.5, "down": hidden**-0.5, "up": 0.5 * rank**-0.5}
    return Streams(
        **{name: (scale[name] * w).astype(np.float32) for name, w in weights.items()}, layers=layers
    )


def streaming_draft(folder: Path) -> StreamingDraft:
    """The checkpoint in `folder` with the streams beside it, in float32."""
    from transformers import AutoModelForCausalLM

    from mirror_edge.export.streaming import StreamingDraft

    found = Streams.read(folder)
    assert found is not None
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float()
    return StreamingDraft.of(model, found, folder)


def write_genai_folder(folder: Path) -> Path:
    """A draft of one layer in ONNX Runtime GenAI's format, made without its builder."""
    from onnx import TensorProto, helper, numpy_helper, save

    hidden, heads, kv_heads, size, context = 64, 4, 2, 16, 256
    rng = np.random.default_rng(0)
    shapes = {
        "embed": (VOCABULARY, hidden),
        "qkv": (hidden, (heads + 2 * kv_heads) * size),
        "out": (heads * size, hidden),
        "head": (hidden, VOCABULARY),
    }
    weights = {name: 0.2 * rng.standard_normal(shape) for name, shape in shapes.items()}
    angles = np.outer(np.arange(context), 10000.0 ** (-np.arange(size // 2) / (size // 2)))
    weights |= {"norm": np.ones(hidden), "cos": np.cos(angles), "sin": np.sin(angles)}
    past = ["past_key_values.0.key", "past_key_values.0.value"]
    present = ["present.0.key", "present.0.value"]

    def node(kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, outputs, **attributes)

    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    norm = {"axis": -1, "epsilon": 1e-6}
    attention = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1}
    nodes = [
        node("Constant", [], "one", value=one),
        node("ReduceSum", ["attention_mask", "one"], "counted", keepdims=0),
        node("Sub", ["counted", "one"], "last"),
        node("Cast", ["last"], "seqlens", to=TensorProto.INT32),
        node("Shape", ["attention_mask"], "mask_shape"),
        node("Gather", ["mask_shape", "one"], "total_64"),
        node("Cast", ["total_64"], "total", to=TensorProto.INT32),
        node("Gather", ["embed", "input_ids"], "rows"),
        node("SimplifiedLayerNormalization", ["rows", "norm"], "normed", **norm),
        node("MatMul", ["normed", "qkv"], "packed"),
        node(
            "GroupQueryAttention",
            ["packed", "", "", *past, "seqlens", "total", "cos", "sin"],
            "attended",
            *present,
            domain="com.microsoft",
            **attention,
        ),
        node("MatMul", ["attended", "out"], "projected"),
        node("Add", ["rows", "projected"], "residual"),
        node("SimplifiedLayerNormalization", ["residual", "norm"], "final", **norm),
        node("MatMul", ["final", "head"], "logits"),
    ]
    cache = [1, kv_heads, "length", size]
    graph = helper.make_graph(
        nodes,
        "draft",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "S"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [1, "T"]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in past),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "S", VOCABULARY]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in present),
        ],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    write_tokenizer(folder)
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    decoder = {"filename": "model.onnx", "head_size": size, "hidden_size": hidden}
    model = {"type": "tiny", "context_length": context, "eos_token_id": 1, "decoder": decoder}
    (folder / "genai_config.json").write_text(json.dumps({"model": model}))
    return folder
