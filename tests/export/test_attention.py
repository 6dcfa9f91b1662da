"""Windows and rotary tables of a source model, in graphs that must take tokens back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, SHAPE, TEXT, Checkpoint, write_genai_folder, write_tokenizer

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge.bundle import Precision
from mirror_edge.errors import ExportError
from mirror_edge.export import export
from mirror_edge.export.builder import build
from mirror_edge.export.pipeline import Exported
from mirror_edge.export.source import locate
from mirror_edge.policy import Mode

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt-oss", "mistral with a window"])
def test_beyond_their_windows_all_modes_say_what_transformers_says(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    architecture, config = FAMILIES[family]
    source = checkpoint(architecture, **{**config, "sliding_window": 32})
    made = export(source, source, tmp_path / "bundle", precision="fp32")
    said = {mode: _answer(made, mode) for mode in ("ar", "sd", "mirror")}
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    prompt = _prompt(made)
    assert len(prompt) > 32
    assert said == dict.fromkeys(said, _expected(model, prompt)[: len(said["ar"])])
    assert len(said["ar"]) > 40


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_of_a_model_that_reads_pictures_the_text_part_is_exported(
    precision: Precision, tmp_path: Path
) -> None:
    architecture, text = FAMILIES["gemma3 with stretched positions"]
    assert architecture == "Gemma3Text"
    sees = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28}
    sees |= {"num_attention_heads": 2, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config={**SHAPE, **text, "sliding_window": 32},
        vision_config=sees,
        mm_tokens_per_image=4,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    made = export(tmp_path / "model", "early-exit", tmp_path / "bundle", precision=precision)
    assert "it cannot read images" in made.notes[0]
    said = {mode: _answer(made, mode) for mode in ("ar", "sd", "mirror")}
    assert said == dict.fromkeys(said, said["ar"])
    if precision == "fp32":
        assert said["ar"] == _expected(model, _prompt(made))[: len(said["ar"])]


def test_a_model_that_transformers_knows_only_with_pictures_is_exported(tmp_path: Path) -> None:
    sees = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28}
    sees |= {"num_attention_heads": 2, "patch_size": 14, "head_dim": 16, "model_type": "pixtral"}
    config = transformers.Mistral3Config(
        text_config={**SHAPE, "model_type": "mistral", "sliding_window": None},
        vision_config=sees,
        image_token_index=5,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    made = export(tmp_path / "model", None, tmp_path / "bundle", precision="fp32")
    said = _answer(made, "ar")
    assert said == _expected(model, _prompt(made))[: len(said)]


def test_layers_that_keep_no_more_than_their_window_are_given_whole_caches(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    architecture, config = FAMILIES["gemma2"]
    source = checkpoint(architecture, **{**config, "sliding_window": 32})
    built = tmp_path / "genai"
    graph = build(locate(source, "TARGET", lambda *_: None), "fp32", built, lambda _: None)
    assert b"sliding_window_cache" in graph.read_bytes()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (built / file).write_bytes((source / file).read_bytes())
    taken = export(built, built, tmp_path / "bundle")
    made = export(source, source, tmp_path / "other", precision="fp32")
    assert _answer(taken, "mirror") == _answer(made, "ar")


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_context_ends_where_longrope_would_change_every_position(
    precision: Precision, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    architecture, config = FAMILIES["phi3 with longrope"]
    source = checkpoint(architecture, **config)
    made = export(source, source, tmp_path / "bundle", precision=precision)
    assert made.manifest.target.model.context == 128
    assert made.manifest.draft is not None
    assert made.manifest.draft.model.context == 128
    assert [note.partition(":")[0] for note in made.notes] == [
        "the target's context is limited to 128 tokens",
        "the draft's context is limited to 128 tokens",
    ]
    answers = [_answer(made, mode, 1000) for mode in ("ar", "sd", "mirror")]
    assert len(_prompt(made)) + len(answers[0]) == 128
    assert answers == answers[:1] * 3


def test_a_draft_whose_window_is_too_short_for_branches_is_refused(
    checkpoint: Checkpoint, target: Path, tmp_path: Path
) -> None:
    architecture, config = FAMILIES["gemma2"]
    source = checkpoint(architecture, **{**config, "sliding_window": 16})
    with pytest.raises(ExportError, match="looks back through a window of 16 tokens"):
        export(target, source, tmp_path / "bundle", precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_attention_that_does_not_turn_its_rows_is_taken(target: Path, tmp_path: Path) -> None:
    folder = write_genai_folder(tmp_path / "genai")
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            del node.input[7:]
            next(item for item in node.attribute if item.name == "do_rotary").i = 0
    onnx.save(model, folder / "model.onnx")
    made = export(target, folder, tmp_path / "bundle", precision="fp32")
    assert _answer(made, "mirror") == _answer(made, "ar")


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_checkpoint_that_lacks_weights_is_refused_by_name(
    precision: Precision, target: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(target, tmp_path / "model"))
    weights = load_file(source / "model.safetensors")
    lost = "model.layers.2.self_attn.o_proj.weight"
    del weights[lost]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=f"1 of its weights are missing, such as {lost}"):
        export(source, None, tmp_path / "bundle", precision=precision)
    assert not (tmp_path / "bundle").exists()


def test_a_shard_that_is_not_there_is_named(target: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(target, tmp_path / "model"))
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="60KB")
    lost = max(source.glob("model-*.safetensors"))
    lost.unlink()
    with pytest.raises(ExportError, match=f"{lost.name}: is missing. Download the model again"):
        export(source, None, tmp_path / "bundle")


def test_every_kind_of_layer_is_checked_though_the_configuration_does_not_spell_them_out(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    architecture, config = FAMILIES["gemma3"]
    plain = {name: value for name, value in config.items() if name != "layer_types"}
    source = Path(
        shutil.copytree(checkpoint(architecture, **plain, num_hidden_layers=7), tmp_path / "model")
    )
    file = source / "config.json"
    known = json.loads(file.read_text())
    assert known.pop("layer_types").index("full_attention") == 5
    file.write_text(json.dumps(known))
    made = export(source, None, tmp_path / "bundle")
    assert made.deviations["the first 6 layers of the target in fp32"] < 1e-4


def test_layers_that_remember_something_else_than_keys_and_values_are_refused(
    checkpoint: Checkpoint, draft: Path, tmp_path: Path
) -> None:
    source = checkpoint("Lfm2", layer_types=["conv", "full_attention", "conv"])
    with pytest.raises(
        ExportError, match="some of its layers keep state other than keys and values"
    ):
        export(source, draft, tmp_path / "bundle", precision="fp32")
    assert list(tmp_path.iterdir()) == []


def _loaded(made: Exported) -> mirror_edge.Model:
    drafts = 1 if made.manifest.draft else None
    return mirror_edge.load(made.folder, target_threads=1, draft_threads=drafts)


def _answer(made: Exported, mode: Mode, most: int = 64) -> list[int]:
    """The tokens of one greedy answer."""
    with _loaded(made) as model:
        result = model.generate(
            TEXT,
            max_new_tokens=most,
            sampling=Sampling(temperature=0.0),
            speculation=Speculation(mode=mode, drafter=None if mode == "ar" else "model"),
        )
    return list(result.tokens)


def _expected(model: Any, prompt: list[int]) -> list[int]:
    """What transformers generates after `prompt`."""
    with torch.no_grad():
        text = model.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)
    return list(text[0, len(prompt) :].tolist())


def _prompt(made: Exported) -> list[int]:
    with _loaded(made) as model:
        return model.tokenize(TEXT)
