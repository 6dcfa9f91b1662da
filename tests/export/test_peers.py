"""Peers: the same prompts, the same greedy tokens, and passes that were counted."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_file
import pytest

import mirror_edge
from mirror_edge import Sampling, Speculation
from mirror_edge.apps.bench.contenders import Ours
from mirror_edge.apps.bench.peers import PEERS, Genai, peer
from mirror_edge.apps.bench.questions import Question
from mirror_edge.apps.bench.rounds import rounds
from mirror_edge.errors import DataError, MissingExtraError, OptionError
from mirror_edge.export import export
from mirror_edge.text import Text

QUESTIONS = [
    Question(1, 1, "qa", ("the quick brown fox",)),
    Question(2, 2, "coding", ("the slow grey wolf", "and the lazy dog")),
]
MOST = 12


@pytest.fixture(scope="module")
def model(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[mirror_edge.Model]:
    folder = tmp_path_factory.mktemp("peers") / "bundle"
    export(target, None, folder, precision="fp32")
    with mirror_edge.load(folder, target_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def text(model: mirror_edge.Model) -> Text:
    return Text.read(model.bundle.folder)


@pytest.mark.parametrize("kind", ["onnxruntime-genai", "llama.cpp", "transformers", "assisted"])
def test_a_peer_says_what_plain_decoding_says(
    kind: str,
    model: mirror_edge.Model,
    text: Text,
    genai: Path,
    target: Path,
    draft: Path,
    tmp_path: Path,
) -> None:
    if kind == "llama.cpp":
        for package in ("llama_cpp", "gguf"):
            pytest.importorskip(package, reason="pip install llama-cpp-python gguf")
        gguf_file.write(target, tmp_path / "target.gguf")
    asked = {
        "llama.cpp": f"llama.cpp={tmp_path / 'target.gguf'}",
        "onnxruntime-genai": f"onnxruntime-genai={genai}",
        "transformers": f"transformers={target}",
        "assisted": f"transformers={target},{draft}",
    }[kind]
    ours = Ours("ar", model, Speculation(mode="ar"), Sampling())
    other = peer(asked, text, threads=1)
    runs = list(rounds(QUESTIONS, [ours, other], 2, MOST, None))
    assert [run.contender for run in runs[:4]] == ["ar", other.name, other.name, "ar"]
    said = {(run.question, run.repeat, run.contender): run for run in runs}
    for (question, repeat, contender), run in said.items():
        assert run.said == said[question, repeat, "ar"].said
        assert 0.0 < run.first_token < run.seconds
        assert run.decode_seconds < run.seconds
        assert run.tokens == run.decode_tokens + len(QUESTIONS[question - 1].turns)
        assert run.tally.committed == run.decode_tokens
        if contender == "ar" or kind != "assisted":
            assert run.tally.passes == run.decode_tokens
        else:
            assert 0 < run.tally.passes <= run.decode_tokens


def test_a_second_turn_reads_only_what_is_new(genai: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime_genai

    read: list[int] = []
    append = onnxruntime_genai.Generator.append_tokens

    def counted(generator: Any, tokens: list[int]) -> None:
        read.append(len(tokens))
        append(generator, tokens)

    monkeypatch.setattr(onnxruntime_genai.Generator, "append_tokens", counted)
    engine, first = Genai(str(genai), 1), list(range(10, 40))
    said = engine.decode(first, MOST).tokens
    more = [*first, *said, 50, 51]
    again = engine.decode(more, MOST).tokens
    other = engine.decode([*first, 60], MOST).tokens  # Another way to go on.
    engine.forget()
    assert engine.decode(more, MOST).tokens == again
    assert Genai(str(genai), 1).decode([*first, 60], MOST).tokens == other
    assert read == [30, 3, 1, len(more), 31]


def test_a_prompt_may_fill_most_of_the_context(genai: Path) -> None:
    assert len(Genai(str(genai), 1).decode([7] * 200, MOST).tokens) == MOST


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    name: str, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=f"--peer {name}: .* pip install "):
        peer(f"{name}=model", text, 1)


@pytest.mark.parametrize("name", ["onnxruntime-genai", "transformers"])
def test_a_peer_without_a_model_is_refused(name: str, text: Text, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"Write --peer {name}=…, a "):
        peer(name, text, 1)
    with pytest.raises(OptionError, match="nowhere: is not a"):
        peer(f"{name}=nowhere", text, 1)
    (tmp_path / "genai_config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=f"{name} refuses it"):
        peer(f"{name}={tmp_path}", text, 1)
