"""Target and draft share one tokenizer, and the bundle gets all of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import TEXT, make_tokenizer, write_tokenizer
from tokenizers import Tokenizer, normalizers

from mirror_edge.errors import ExportError
from mirror_edge.export import export
from mirror_edge.export.source import locate
from mirror_edge.export.tokenizer import read_tokenizer, write_files
from mirror_edge.template import Message, template_file
from mirror_edge.text import Text


@pytest.fixture
def other(draft: Path, tmp_path: Path) -> Path:
    """The draft, for a test to change its tokenizer."""
    return Path(shutil.copytree(draft, tmp_path / "draft"))


def refused(target: Path, other: Path, tokenizer: Tokenizer) -> str:
    write_tokenizer(other, tokenizer)
    with pytest.raises(ExportError, match="--draft: target and draft have") as caught:
        export(target, other, other.parent / "bundle")
    assert not (other.parent / "bundle").exists()
    return str(caught.value)


def test_other_tokens_are_refused_with_the_first_that_differ(target: Path, other: Path) -> None:
    theirs = make_tokenizer("an entirely different text about nothing in particular, at length")
    message = refused(target, other, theirs)
    assert "different tokenizers" in message
    ours = make_tokenizer()
    first = next(i for i in range(300) if ours.id_to_token(i) != theirs.id_to_token(i))
    shown = f"first: {first} is {ours.id_to_token(first)!r} and {theirs.id_to_token(first)!r}"
    assert shown in message


def test_an_added_token_makes_a_difference(target: Path, other: Path) -> None:
    theirs = make_tokenizer()
    theirs.add_special_tokens(["<|turn|>"])
    assert "None and '<|turn|>'" in refused(target, other, theirs)


def test_the_same_tokens_with_another_normalizer_are_refused(target: Path, other: Path) -> None:
    theirs = make_tokenizer()
    theirs.normalizer = normalizers.Lowercase()
    assert "tokenize text differently (first at token" in refused(target, other, theirs)


def test_the_same_tokens_with_other_merges_are_refused(target: Path, other: Path) -> None:
    theirs = json.loads(make_tokenizer().to_str())
    theirs["model"]["merges"].reverse()
    message = refused(target, other, Tokenizer.from_str(json.dumps(theirs)))
    assert "tokenize text differently" in message


def test_the_chat_template_gets_a_file_of_its_own(target: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(target, tmp_path / "model"))
    source = locate(folder, "TARGET", lambda *_: None)
    out = tmp_path / "out"
    out.mkdir()
    write_files(source, read_tokenizer(source), out, 99)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert (out / "chat_template.jinja").read_text() == template
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert "chat_template" not in config
    assert config["model_max_length"] == 99
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()

    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    write_files(source, read_tokenizer(source), out, 99)
    assert (out / "chat_template.jinja").read_text() == "d"
    assert (out / "additional_chat_templates/tool_use.jinja").read_text() == "t"

    (folder / "chat_template.jinja").write_text("from a file")
    write_files(source, read_tokenizer(source), out, 99)
    assert (out / "chat_template.jinja").read_text() == "from a file"


HELLO = [Message(role="user", content="Hello")]


@pytest.mark.parametrize("layout", ["in the configuration", "in files"])
def test_every_named_template_is_there_in_the_bundle(
    target: Path, tmp_path: Path, layout: str
) -> None:
    folder = Path(shutil.copytree(target, tmp_path / "model"))
    templates = {"default": "plain {{ messages[0].content }}", "tool_use": "tools"}
    config: dict[str, Any] = {}
    if layout == "in files":
        (folder / "additional_chat_templates").mkdir()
        for name, template in templates.items():
            (folder / template_file(name)).write_text(template)
    else:
        config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    source, out = locate(folder, "TARGET", lambda *_: None), tmp_path / "out"
    out.mkdir()
    write_files(source, read_tokenizer(source), out, 99)
    text = Text.read(out)
    assert text.render_chat(HELLO) == "plain Hello"
    assert text.render_chat(HELLO, tools=[{"name": "clock"}]) == "tools"


def test_the_first_of_named_templates_is_the_default(target: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(target, tmp_path / "model"))
    named = [{"name": "rag", "template": "first"}, {"name": "tool_use", "template": "second"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    source, out = locate(folder, "TARGET", lambda *_: None), tmp_path / "out"
    out.mkdir()
    write_files(source, read_tokenizer(source), out, 99)
    assert Text.read(out).render_chat(HELLO) == "first"


@pytest.mark.parametrize(
    "template",
    [
        7,
        [{"name": "x"}],
        ["x"],
        [{"name": "x", "template": None}],
        [{"name": "../x", "template": "t"}],
        [{"name": 1, "template": None}],
    ],
)
def test_a_chat_template_that_is_none_is_refused(
    target: Path, tmp_path: Path, template: object
) -> None:
    folder = Path(shutil.copytree(target, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    source = locate(folder, "TARGET", lambda *_: None)
    with pytest.raises(ExportError, match=r"tokenizer_config.json: chat_template must be a string"):
        write_files(source, read_tokenizer(source), tmp_path, 99)


def test_a_chat_template_that_is_no_text_is_refused(target: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(target, tmp_path / "model"))
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    source = locate(folder, "TARGET", lambda *_: None)
    with pytest.raises(ExportError, match=r"chat_template.jinja: cannot be read"):
        write_files(source, read_tokenizer(source), tmp_path, 99)


def test_a_slow_tokenizer_is_converted(target: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = Path(shutil.copytree(target, tmp_path / "model"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    merges = [" ".join(pair) for pair in vocabulary["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    found = read_tokenizer(locate(folder, "TARGET", lambda *_: None))
    assert found.encode(TEXT).ids == make_tokenizer().encode(TEXT).ids


def test_a_model_without_a_tokenizer_is_refused(target: Path, other: Path) -> None:
    (other / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"has no tokenizer.json. Copy the model's tokenizer"):
        export(target, other, other.parent / "bundle")
    (other / "tokenizer.model").write_bytes(b"not a sentencepiece model")
    with pytest.raises(ExportError, match=r"has tokenizer.model but no tokenizer.json, and trans"):
        export(target, other, other.parent / "bundle")
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(ExportError, match=r"tokenizer.json: cannot be read as a tokenizer"):
        export(target, other, other.parent / "bundle")
