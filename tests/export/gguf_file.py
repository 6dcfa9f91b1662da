"""A Llama checkpoint as a GGUF file: ``python -P gguf_file.py CHECKPOINT OUTPUT [Q4_0]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(checkpoint: Path, output: Path, quantization: str | None = None) -> Path:
    """All matrices are quantised alike, in float32 where no quantisation is named."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    weights: dict[str, Any] = {}
    for file in checkpoint.glob("*.safetensors"):
        weights |= {name: tensor.float().numpy() for name, tensor in load_file(file).items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(output, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(config["rope_parameters"]["rope_theta"]))
    writer.add_vocab_size(config["vocab_size"])
    # Prompts come as ids, so that the names of the tokens do not matter.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{token}>" for token in range(config["vocab_size"])])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges(["a b"])

    def add(name: str, values: Any) -> None:
        if quantization is None or values.ndim < 2:
            writer.add_tensor(name, values)
            return
        kind = gguf.GGMLQuantizationType[quantization]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    embedding = weights["model.embed_tokens.weight"]
    add("token_embd.weight", embedding)
    add("output_norm.weight", weights["model.norm.weight"])
    add("output.weight", weights.get("lm_head.weight", embedding))
    for layer in range(config["num_hidden_layers"]):
        for theirs, name in LAYER.items():
            values = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in ("attn_q", "attn_k"):  # llama.cpp rotates neighbours, not halves
                parts = values.reshape(heads if name == "attn_q" else kv_heads, 2, size // 2, -1)
                values = parts.swapaxes(1, 2).reshape(values.shape)
            add(f"blk.{layer}.{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
