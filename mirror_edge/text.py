"""The text side of a bundle: tokenizer, chat template, and which tokens end an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mirror_edge.bundle import Bundle
from mirror_edge.detokenize import TextStream, opener
from mirror_edge.errors import BundleError, OptionError
from mirror_edge.grammar import Constrain, constrainer
from mirror_edge.template import MORE_TEMPLATES, ChatTemplate, Message, template_file

__all__ = ["Message", "Text"]

_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


_LONG = 1 << 16
"""Characters above which encoding a text takes noticeable time."""


@dataclass(frozen=True)
class Text:
    """A model's text side; `of` reads a bundle's, `read` any model folder's."""

    tokenizer: Tokenizer
    template: ChatTemplate
    eos: frozenset[int]
    """The tokens that end an answer; empty for a model that names none."""
    stream: Callable[[], TextStream]
    """Opens the incremental detokeniser of one answer."""
    constrain: Constrain
    """Binds a grammar to these tokens."""

    @classmethod
    def of(cls, bundle: Bundle) -> Text:
        """Read a bundle's, only from files in its manifest. Raises as `read`."""
        return cls._read([bundle.file(name) for name in bundle.manifest.files], bundle.folder)

    @classmethod
    def read(cls, folder: Path) -> Text:
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and, where there are any,
        ``generation_config.json``, ``chat_template.jinja`` and ``additional_chat_templates``.

        Raises:
            BundleError: naming the file at fault, what is wrong with it, and what to do.
        """
        return cls._read([*folder.glob("*"), *folder.glob(f"{MORE_TEMPLATES}/*")], folder)

    @classmethod
    def _read(cls, files: Collection[Path], folder: Path) -> Text:
        """Read `folder`, only from those of its files that are among `files`."""
        tokenizer_path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
        for path in (tokenizer_path, config_path):
            if path not in files:
                raise BundleError(f"{path}: is missing. {_REMEDY}")
        tokenizer, config = _read_tokenizer(tokenizer_path), _read_object(config_path)
        tokens = _named_tokens(config, config_path)
        template = ChatTemplate(_templates(files, folder, config, config_path), tokens)
        generation = folder / "generation_config.json"
        # Not every model has one.
        eos = _end_of_sequence(generation) if generation in files else frozenset()
        if not eos and "eos_token" in tokens:
            eos = frozenset({_id_of(tokenizer, tokens["eos_token"], config_path)})
        return cls(tokenizer, template, eos, opener(tokenizer), constrainer(tokenizer, eos))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text, by default with those the model expects around a raw prompt.

        Raises:
            OptionError: if the text contains an unpaired surrogate, so it is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise OptionError(
                f"the text is not valid Unicode: it has an unpaired surrogate at character "
                f"{error.start}. Check its encoding."
            ) from None
        if len(text) < _LONG:
            return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        # Unlike `encode`, this lets other threads run.
        (encoded,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoded.ids)

    def render_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: object
    ) -> str:
        """The conversation as the model's chat template writes it.

        `kwargs` go to the template, such as ``enable_thinking=False`` or ``tools=[...]``.

        Raises:
            TemplateError: for messages of the wrong shape, a missing template, or one that fails.
        """
        return self.template.render(messages, add_generation_prompt=add_generation_prompt, **kwargs)

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **kwargs: object
    ) -> list[int]:
        """The tokens of `render_chat`; the template writes the special ones, none are added.

        Raises:
            TemplateError: as `render_chat`.
            OptionError: as `encode`.
        """
        prompt = self.render_chat(messages, add_generation_prompt=add_generation_prompt, **kwargs)
        return self.encode(prompt, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones: what a `stream` of them yields in total."""
        stream = self.stream()
        return stream.push(ids) + stream.finish()


_REMEDY = "Copy the bundle again or export again."


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read ({error}). {_REMEDY}") from error


def _read_object(path: Path) -> dict[str, Any]:
    source = _read_text(path)
    try:
        content = json.loads(source)
    except ValueError as error:
        raise BundleError(f"{path}: cannot be read as JSON ({error}). {_REMEDY}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: must hold a JSON object. {_REMEDY}")
    return content


def _read_tokenizer(path: Path) -> Tokenizer:
    source = _read_text(path)
    try:
        tokenizer = Tokenizer.from_str(source)
    except Exception as error:  # tokenizers raises nothing narrower
        raise BundleError(f"{path}: is not a tokenizer ({error}). {_REMEDY}") from error
    # Left over from training, either would silently change a prompt.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _named_tokens(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The spelling of each special token that has a name."""
    tokens: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        token = config.get(name)
        if isinstance(token, dict):  # a serialised AddedToken
            token = token.get("content")
        if isinstance(token, str):
            tokens[name] = token
        elif config.get(name) is not None:
            raise BundleError(f"{path}: {name} must be a string, not {token!r}. {_REMEDY}")
    return tokens


def _templates(
    files: Collection[Path], folder: Path, config: Mapping[str, Any], path: Path
) -> dict[str, str]:
    """The chat templates by name; empty for a model that has none."""
    file = folder / template_file("default")
    if file in files:
        within = (other for other in files if other.parent == folder / MORE_TEMPLATES)
        more = sorted(other for other in within if other.suffix == ".jinja")
        return {"default": _read_text(file)} | {path.stem: _read_text(path) for path in more}
    templates = config.get("chat_template") or []
    if isinstance(templates, str):
        return {"default": templates}
    try:
        named = {entry["name"]: entry["template"] for entry in templates}
    except (TypeError, KeyError):
        named = {"": None}
    if not all(isinstance(part, str) for item in named.items() for part in item):
        raise BundleError(
            f"{path}: chat_template must be a string or a list of {{name, template}}. {_REMEDY}"
        )
    return named


def _end_of_sequence(path: Path) -> frozenset[int]:
    """The ids under ``eos_token_id``; empty if there is no such entry."""
    ids = _read_object(path).get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise BundleError(f"{path}: eos_token_id must be a token or a list of tokens. {_REMEDY}")
    return frozenset(ids)


def _id_of(tokenizer: Tokenizer, token: str, path: Path) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise BundleError(f"{path}: eos_token {token!r} is not in the vocabulary. {_REMEDY}")
    return found
