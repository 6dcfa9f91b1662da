"""Text on disk as tokens, and what is refused of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tokenizer

from mirror_edge.errors import DataError
from mirror_edge.export import texts
from mirror_edge.text import Text

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def text(tmp_path: Path) -> Text:
    write_tokenizer(tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    return Text.read(tmp_path / "model")


def write(folder: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def read(file: Path, text: Text, **options: int) -> texts.Corpus:
    return texts.read([file], text, vocabulary=320, end=1, **options)


def said(corpus: texts.Corpus, text: Text) -> str:
    return str(text.tokenizer.decode(corpus.tokens.tolist(), skip_special_tokens=False))


@pytest.mark.parametrize(
    "line",
    [
        {
            "messages": [
                {"role": "user", "content": "the fox"},
                {"role": "assistant", "content": "jumps"},
            ]
        },
        {"m": ["the fox", "jumps"]},
    ],
)
def test_a_conversation_is_written_by_the_chat_template(
    line: object, text: Text, tmp_path: Path
) -> None:
    corpus = read(write(tmp_path, json.dumps(line)), text)
    assert said(corpus, text) == "<user>the fox</s><assistant>jumps</s>"
    prompt = text.tokenizer.decode(corpus.prompts[0].tolist(), skip_special_tokens=False)
    assert prompt == "<user>the fox</s><assistant>"


@pytest.mark.parametrize("line", [{"text": "a lazy dog"}, {"m": ["", "a lazy dog"]}])
def test_plain_text_ends_with_the_end_token(line: object, text: Text, tmp_path: Path) -> None:
    corpus = read(write(tmp_path, json.dumps(line)), text)
    assert said(corpus, text) == "a lazy dog</s>"


def test_a_text_file_becomes_documents_at_the_ends_of_lines(text: Text, tmp_path: Path) -> None:
    line = "the quick brown fox jumps over the lazy dog\n"
    file = write(tmp_path, "\ufeff" + line * 400, "book.TXT")
    corpus = read(file, text)
    assert corpus.documents == 5
    assert said(corpus, text).replace("</s>", "") == line * 400
    assert corpus.prompts
    assert all(0 < len(prompt) <= 32 for prompt in corpus.prompts)


def test_held_out_documents_and_the_rest_are_all_of_them(text: Text, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"dog {number}"}) for number in range(50)]
    file = write(tmp_path, "\n".join(lines) + "\n\n")
    every = texts.held_out_every([file])
    rest, out = read(file, text, every=every), read(file, text, every=every, held_out=True)
    assert (rest.documents, out.documents) == (45, 5)
    parts = [set(said(part, text).split("</s>")) - {""} for part in (rest, out)]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 50


def test_tokens_take_four_bytes_where_two_are_too_few(text: Text, tmp_path: Path) -> None:
    file = write(tmp_path, '{"text": "the fox"}')
    assert read(file, text).tokens.dtype == np.uint16
    assert texts.read([file], text, vocabulary=70_000, end=1).tokens.dtype == np.uint32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "fine"}\n{"text": ', r"data\.jsonl:2: is not JSON"),
        ('{"text": "fine"}\n\n[1]\n', r"data\.jsonl:3: needs \"messages\""),
        ('{"words": "x"}', r"data\.jsonl:1: needs"),
        ('{"text": " "}', r"data\.jsonl:1: needs"),
        ('{"messages": []}', r"data\.jsonl:1: needs"),
        ('{"messages": [{"role": "user"}]}', r"data\.jsonl:1: needs"),
        ('{"m": ["a", 5]}', r"data\.jsonl:1: needs"),
        ('{"text": "half \\ud83d"}', r"data\.jsonl:1: contains an unpaired surrogate"),
        (b'{"text": "fine"}\n{"text": "caf\xe9"}', r"data\.jsonl:2: is not UTF-8 .* byte 14"),
        ("[" * 100_000, r"data\.jsonl:1: is not JSON \(nested too deeply\)"),
        ('{"n": ' + "1" * 5000 + "}", r"data\.jsonl:1: is not JSON"),
        ("", r"data\.jsonl: is empty"),
        ("\n\n", r"data\.jsonl: is empty"),
        (
            '{"messages": [{"role": "system", "content": "x"}]}',
            r"data\.jsonl:1: .*chat template \(.*no system turns\)",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_file_and_line(
    content: str | bytes, message: str, text: Text, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, content), text)


def test_files_that_cannot_be_read_or_are_too_short_are_refused(text: Text, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file"):
        read(tmp_path / "none.jsonl", text)
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path, text)
    short = write(tmp_path, "the fox", "short.txt")
    with pytest.raises(DataError, match=r"short\.txt: is too short: \d tokens, and at least 100"):
        read(short, text, at_least=100)
    with pytest.raises(DataError, match=r"only one document.*--held-out"):
        texts.held_out_every([short])
    with pytest.raises(DataError, match="does not know"):
        texts.read([short], text, vocabulary=5, end=1)
