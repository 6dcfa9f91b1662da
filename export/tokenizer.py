"""The tokenizer files of a bundle, and the rule that target and draft must share a tokenizer."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from mirror_edge.errors import ExportError
from mirror_edge.export.source import Source, install_line, read_json
from mirror_edge.template import MORE_TEMPLATES, template_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_tokenizer", "refuse_different", "sample_ids", "write_files"]

_SAMPLE = """The café on the corner opens at 7:30. "Two coffees, please," she said.
def mean(xs): return sum(xs) / len(xs)  # 3.14159, 2,718 and -42
Пингвины не летают, 企鹅不会飞, e i pinguini neppure.\tIt's what they DON'T do.\n\n  - first
  - second: 10% off!  🐧🐧
"""
_NAME = re.compile(r"[\w-]+")
_SHOWN = 3
"""Differing entries that an error names."""


def read_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a model, converted by transformers when it only has a slow one.

    Raises:
        ExportError: for a tokenizer that is missing, damaged or cannot be converted.
        MissingExtraError: without transformers, where that is needed.
    """
    path = source.folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:
            raise ExportError(
                f"{path}: cannot be read as a tokenizer ({error}). Copy the model folder again."
            ) from error
    slow = next((f for f in ("tokenizer.model", "vocab.json") if (source.folder / f).is_file()), "")
    if not slow:
        raise ExportError(
            f"{source.folder}: has no tokenizer.json. Copy the model's tokenizer files into it."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third-party code on import
            from transformers import AutoTokenizer

            fast = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
        backend: Tokenizer = fast.backend_tokenizer
    except ImportError as error:
        raise install_line(error.name or "transformers") from error
    except Exception as error:
        raise ExportError(
            f"{source.folder}: has {slow} but no tokenizer.json, and transformers cannot convert "
            f"it ({type(error).__name__}: {error}). Save a fast tokenizer into the folder with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        ) from error
    return backend


def refuse_different(target: Tokenizer, draft: Tokenizer) -> None:
    """Refuse tokenizers that give tokens different ids, or tokenize text differently.

    Raises:
        ExportError: naming the first difference.
    """
    ours, theirs = _by_id(target), _by_id(draft)
    if ours != theirs:
        ids = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
        first = ", ".join(f"{i} is {ours.get(i)!r} and {theirs.get(i)!r}" for i in ids[:_SHOWN])
        raise ExportError(
            f"--draft: target and draft have different tokenizers: {len(ids):,} of "
            f"{max(len(ours), len(theirs)):,} ids differ (first: {first}). "
            "Choose a draft of the target's family."
        )
    one, other = (t.encode(_SAMPLE).ids for t in (target, draft))
    if one != other:
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), -1)
        where = (
            f"at token {at}: {ours[one[at]]!r} and {ours[other[at]]!r}" if at >= 0 else "in length"
        )
        raise ExportError(
            "--draft: target and draft have the same tokens but tokenize text differently "
            f"(first {where}). Choose a draft of the target's family."
        )


def _by_id(tokenizer: Tokenizer) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}


def sample_ids(tokenizer: Tokenizer, length: int, vocabulary: int) -> NDArray[np.int64]:
    """`length` tokens of a text in several scripts, with numbers and code, repeated as needed."""
    ids = [i for i in tokenizer.encode(_SAMPLE, add_special_tokens=False).ids if i < vocabulary]
    if not ids:
        raise ExportError(
            "The tokenizer's ids do not fit the model's vocabulary. Copy the model folder again."
        )
    return np.resize(np.array(ids, np.int64), length)


def write_files(source: Source, tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write tokenizer, chat templates and generation settings in Hugging Face's format."""
    path = source.folder / "tokenizer.json"
    if path.is_file():
        (folder / "tokenizer.json").write_bytes(path.read_bytes())
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    config_path = source.folder / "tokenizer_config.json"
    config = read_json(config_path)
    for name, template in _templates(config.pop("chat_template", None), config_path).items():
        file = folder / template_file(name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(template, encoding="utf-8")
    config["model_max_length"] = context
    _write(folder / "tokenizer_config.json", config)
    generation = read_json(source.folder / "generation_config.json")
    if not generation:
        settings = {**source.genai.get("model", {}), **source.genai.get("search", {})}
        generation = {key: settings[key] for key in _SETTINGS if settings.get(key) is not None}
    generation["eos_token_id"] = source.eos_token_ids
    _write(folder / "generation_config.json", generation)


_SETTINGS = ("bos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p")


def _templates(inside: Any, config: Path) -> dict[str, str]:
    """The chat templates by name, including the default; empty for a model without any.

    They are files next to `config`, or `inside` it, or in older folders in chat_template.json.
    """
    folder = config.parent
    named = {"default": folder / template_file("default")}
    named |= {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    files = {name: _read(path) for name, path in named.items() if path.is_file()}
    if "default" in files:
        return files
    inside = inside or read_json(folder / "chat_template.json").get("chat_template") or []
    if isinstance(inside, str):
        return {"default": inside}
    try:
        found = {entry["name"]: entry["template"] for entry in inside}
    except (TypeError, KeyError):
        found = {None: None}
    for name, template in found.items():
        if not (isinstance(name, str) and _NAME.fullmatch(name) and isinstance(template, str)):
            raise ExportError(
                f"{config}: chat_template must be a string or a list of {{name, template}}. "
                "Copy the model folder again."
            )
    return {"default": next(iter(found.values())), **found} if found else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path}: cannot be read ({error}). Copy the model folder again."
        ) from error


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
