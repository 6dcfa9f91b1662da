"""A planted pair agrees as often as asked, through the real export and the real loop."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge.apps.agreement import agreement
from mirror_edge.apps.cli import app
from mirror_edge.apps.program import single
from mirror_edge.errors import OptionError
from mirror_edge.export import export, shards
from mirror_edge.export.planted import CANDIDATES, make_language
from mirror_edge.export.shapes import SHAPES, shape_of
from mirror_edge.export.synth import Asked, synth
from mirror_edge.export.words import FIRST_WORD, made_up_tokenizer

TINY = Asked("4x64x2048", "2x64", agreement=0.7, exit_coverage=0.85, seed=3)


def write(asked: Asked, folder: Path) -> Path:
    synth(asked, folder, dtype="bfloat16", force=False, on_progress=lambda *_: None)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(TINY, tmp_path_factory.mktemp("planted") / "pair")


Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The pair as a bundle, made once for every precision and exit layer."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(precision: Any, exit_layer: int | None = None) -> Path:
        key = precision, exit_layer
        if key not in made:
            folder = tmp_path_factory.mktemp("planted") / precision
            options: dict[str, Any] = {"precision": precision, "exit_layer": exit_layer}
            made[key] = export(pair / "target", pair / "draft", folder, **options).folder
        return made[key]

    return make


def measured(bundle: Path, *options: str) -> dict[str, Any]:
    """What `apps.agreement` prints of a bundle."""
    command = [str(bundle), "--json", "--new-tokens", "71", *options]
    done = CliRunner().invoke(single(agreement), command, catch_exceptions=False)
    return dict(json.loads(done.stdout))


def test_agreement_and_coverage_are_as_asked_in_int4(exported: Exported) -> None:
    found = measured(exported("int4"))
    assert found["planted"] == asdict(TINY)
    greedy, sampled = found["temperatures"]["0"], found["temperatures"]["1"]
    assert greedy["tokens"] == 1400
    assert greedy["acceptance_per_token"] == pytest.approx(0.7, abs=0.03)
    assert sampled["acceptance_per_token"] == pytest.approx(0.7, abs=0.03)
    coverage = greedy["coverage"]
    assert coverage["8"] == pytest.approx(0.85, abs=0.03)
    # Every rank is half as likely as the one before it.
    assert coverage["1"] == pytest.approx(0.5 * 0.85, abs=0.08)
    assert coverage["1"] < coverage["2"] < coverage["4"] < coverage["8"]
    # Which outcomes are prepared for does not hang on where the draft is right.
    assert greedy["hit_rate"]["all"] == pytest.approx(0.85, abs=0.05)


@pytest.mark.parametrize("exit_layer", [1, 3])
def test_coverage_is_the_same_behind_every_layer(exit_layer: int, exported: Exported) -> None:
    found = measured(exported("fp32", exit_layer), "--temperature", "0")["temperatures"]["0"]
    assert found["coverage"]["8"] == pytest.approx(0.85, abs=0.03)
    assert found["acceptance_per_token"] == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_every_family_says_what_was_planted(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shape = replace(shape_of(TINY.target_shape, "--target-shape"), family=family)
    monkeypatch.setitem(SHAPES, "tiny", shape)
    asked = replace(TINY, target_shape="tiny", draft_shape="tiny")
    folder = write(asked, tmp_path / family)
    words = range(FIRST_WORD, shape.vocabulary)
    language = make_language(
        shape.vocabulary, words, asked.agreement, asked.exit_coverage, asked.seed
    )
    # Out of order, so that what was said before is of no help.
    text = torch.from_numpy(np.random.default_rng(0).permutation(shape.vocabulary)[None, :300])
    said = {}
    for role in ("target", "draft"):
        model = AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32)
        assert type(model).__name__ == f"{family}ForCausalLM"
        with torch.no_grad():
            said[role] = model(text)
    assert said["target"].logits.argmax(-1).tolist() == language.after[text].tolist()
    assert said["draft"].logits.argmax(-1).tolist() == language.guess[text].tolist()


def test_an_answer_runs_to_its_length_and_is_the_same_in_every_mode(exported: Exported) -> None:
    texts = set()
    with mirror_edge.load(exported("fp32", 1), target_threads=1, draft_threads=1) as model:
        for temperature in (0.0, 1.0):
            for mode in ("ar", "sd", "mirror"):
                result = model.generate(
                    [{"role": "user", "content": "Hello!"}],
                    max_new_tokens=150,
                    sampling=Sampling(temperature=temperature, seed=9),
                    speculation=Speculation(mode, window=7),
                )
                assert len(result.tokens) == 150
                assert result.finish_reason == "length"
                texts.add(result.text)
    # So sharp that the temperature changes nothing.
    (text,) = texts
    assert all(word.isalpha() and len(word) in (4, 6) for word in text.split())
    assert len(set(text.split())) == 150


def test_answers_begin_in_different_places(exported: Exported, prompts: list[str]) -> None:
    with mirror_edge.load(exported("fp32", 1), target_threads=1, draft_threads=1) as model:
        first = {
            model.generate([{"role": "user", "content": p}], max_new_tokens=1).tokens
            for p in prompts
        }
    assert len(first) > 0.5 * len(prompts)


def test_one_seed_is_one_pair(pair: Path, tmp_path: Path) -> None:
    again = write(TINY, tmp_path / "again")
    assert hashes(again) == hashes(pair)
    other = write(replace(TINY, seed=4), tmp_path / "other")
    same = {name for name, sha in hashes(other).items() if hashes(pair)[name] == sha}
    assert "target/tokenizer.json" in same
    assert not any(name.endswith(".safetensors") for name in same)


def test_weights_in_several_files_are_the_same_weights(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(shards, "_SHARD", 200_000)
    folder = write(TINY, tmp_path / "split") / "target"
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for file in files for tensor in load_file(file).values()
    )
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    expected = load_file(pair / "target" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
    ],
)
def test_known_shapes_have_the_published_size(name: str, parameters: int) -> None:
    shape = SHAPES[name]
    found = shards.size(shape.config(), "float16") // 2
    # All but the largest share one matrix between embedding and head; a planted pair has two.
    shared = 0 if name == "llama-3.1-8b" else shape.vocabulary * shape.hidden
    assert found == parameters + shared


@settings(max_examples=40, deadline=None)
@given(
    first=st.integers(0, 500),
    count=st.integers(200, 3000),
    share=st.floats(0, 1),
    coverage=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_a_language_is_one_cycle_with_the_shares_asked_for(
    first: int, count: int, share: float, coverage: float, seed: int
) -> None:
    words = range(first, first + count)
    language = make_language(first + count + 50, words, share, coverage, seed)
    walk = [first]
    while (token := int(language.after[walk[-1]])) != first:
        walk.append(token)
    assert sorted(walk) == list(words)
    assert set(language.after) | set(language.guess) == set(words)
    agree, covered = language.guess == language.after, language.rank > 0
    for right, asked in ((agree, share), (covered, coverage)):
        assert abs(right[walk].sum() - asked * count) <= 1
        # Any long stretch of an answer shows it too.
        stretch = right[(walk * 2)[count // 2 : count // 2 + 200]]
        assert abs(stretch.sum() - asked * 200) <= 51
    wrong = np.flatnonzero(~agree)
    assert (language.guess[wrong] != wrong).all()
    assert language.rank.max() <= CANDIDATES
    assert language.rank.min() >= 0


@settings(max_examples=30, deadline=None)
@given(text=st.text(), vocabulary=st.integers(1024, 9000))
def test_made_up_words_spell_any_text(text: str, vocabulary: int) -> None:
    tokenizer = made_up_tokenizer(vocabulary)
    assert tokenizer.get_vocab_size() == vocabulary
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    words = list(range(FIRST_WORD, vocabulary, 7))
    assert tokenizer.encode(tokenizer.decode(words)).ids == words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agreement": 1.5}, "--agreement 1.5: must be a share, from 0 to 1."),
        ({"exit_coverage": -0.1}, "--exit-coverage -0.1: must be a share"),
        ({"seed": -1}, "--seed -1: must be 0 or more."),
        ({"target_shape": "gpt"}, "--target-shape gpt: is not a known shape. Give one of llama"),
        ({"target_shape": "1x64"}, "--target-shape 1x64: must have at least two layers"),
        ({"target_shape": "4x70"}, "--target-shape 4x70: must have 1 to 1000 layers and a hidden"),
        ({"target_shape": "4x64x500"}, "a vocabulary must have from 1024 to 262144 tokens."),
        ({"draft_shape": "2x64x1024"}, "the target's vocabulary has 2048 tokens, .* Write 2x64."),
    ],
)
def test_what_cannot_be_planted_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        write(replace(TINY, **change), tmp_path / "pair")
    assert list(tmp_path.iterdir()) == []


def test_a_draft_takes_over_the_vocabulary_of_its_target() -> None:
    assert shape_of("SmolLM2-135M", "--draft-shape", 151936).vocabulary == 151936
    assert shape_of("smollm2-135m", "--target-shape").vocabulary == 49152
    assert shape_of("30x576", "--target-shape") == SHAPES["smollm2-135m"]


def test_the_command_writes_a_labelled_pair(tmp_path: Path) -> None:
    folder = tmp_path / "pair"
    command = ["synth", "--target-shape", "2x64x1024", "--draft-shape", "1x64", "-o", str(folder)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "a planted pair of 0.2M and 0.2M parameters. Its language is artificial" in done.stdout
    assert "Writing the draft" in done.stderr
    assert "It knows no language" in (folder / "README.md").read_text()
    asked = json.loads((folder / "planted.json").read_text())
    assert (asked["agreement"], asked["exit_coverage"]) == (0.8, 0.9)
    for role in ("target", "draft"):
        for file in ("config.json", "tokenizer_config.json"):
            assert json.loads((folder / role / file).read_text())["planted"] == asked
    with pytest.raises(OptionError, match="pair: already exists"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0
    (folder / "planted.json").unlink()
    with pytest.raises(OptionError, match="is not a planted pair, so --force will not replace it"):
        CliRunner().invoke(app, [*command, "--force"], catch_exceptions=False)


def test_the_command_is_light_to_import() -> None:
    program = (
        "import sys; import mirror_edge.apps.synth, mirror_edge.apps.agreement; "
        "print({'numpy', 'onnxruntime', 'torch', 'transformers', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"
