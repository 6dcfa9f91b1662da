"""What the user named as a model: where it is, what kind of folder, and its configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mirror_edge.bundle import MANIFEST
from mirror_edge.errors import ExportError, MissingExtraError, OptionError

__all__ = ["Kind", "OnProgress", "Source", "install_line", "locate", "read_json"]

Kind = Literal["checkpoint", "genai", "optimum", "bundle"]
OnProgress = Callable[[str, float], None]
"""Called with the name of a stage and the share of it done, 0 to 1."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.jinja", "*.model", "*.safetensors", "*.onnx", "*.onnx.data", "*.txt"]
_NOT_HUB_FILES = [*(f"*/{kind}" for kind in _HUB_FILES if kind != "*.jinja"), "consolidated*"]
"""Other exports of the same model, and Mistral's second copy of its weights."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Source:
    """One model on disk."""

    folder: Path
    kind: Kind
    graph: Path | None
    """The full ONNX graph; None for checkpoints and bundles."""
    config: dict[str, Any]
    """`config.json`, or empty."""
    genai: dict[str, Any]
    """`genai_config.json`, its sections filled in, or empty."""

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of `config` about the decoder: for multimodal models, a section of it."""
        return self.config.get("text_config") or self.config

    @property
    def weight_bytes(self) -> int:
        """Bytes per weight of a checkpoint, as stored."""
        config = self.text_config
        return 4 if "32" in str(config.get("dtype", config.get("torch_dtype"))) else 2

    @property
    def eos_token_ids(self) -> list[int]:
        """Every token that ends an answer, according to any of the model's files.

        Raises:
            ExportError: naming the file that has something else.
        """
        found: list[int] = []
        for file, settings in (
            ("generation_config.json", read_json(self.folder / "generation_config.json")),
            ("config.json", self.text_config),
            ("genai_config.json", self.genai.get("model", {})),
        ):
            ids = settings.get("eos_token_id")
            ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
            if not all(type(token) is int and token >= 0 for token in ids):
                raise ExportError(
                    f"{self.folder / file}: eos_token_id must be a token or a list of tokens. "
                    "Copy the model folder again."
                )
            found += ids
        return list(dict.fromkeys(found))


def install_line(package: str) -> MissingExtraError:
    """The error for a package that exporting needs and that is not installed."""
    return MissingExtraError(
        f"Exporting this model needs the package {package}, which is not installed. "
        "Install it with: pip install 'mirror-edge[export]'"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file.

    Raises:
        ExportError: naming the file that cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path}: cannot be read as JSON ({error}). Copy the model folder again."
        ) from error
    if not isinstance(found, dict):
        raise ExportError(f"{path}: must hold a JSON object. Copy the model folder again.")
    return found


def locate(model: str | Path, option: str, on_progress: OnProgress) -> Source:
    """Find the model that `option` names, on disk or on the hub.

    Raises:
        OptionError: for a name that is neither a folder nor one on the hub.
        ExportError: for a folder that is not a model, or a failed download.
    """
    folder = Path(model).expanduser()
    if folder.is_file():
        raise OptionError(f"{option} {model}: is a file. Give the folder of the model.")
    if not folder.is_dir():
        folder = _download(str(model), option, on_progress)
    if (folder / MANIFEST).is_file():
        return Source(folder, "bundle", None, {}, {})
    genai, config = _genai(folder / "genai_config.json"), _config(folder / "config.json")
    if genai:
        file = str(genai["model"]["decoder"].get("filename", "model.onnx"))
        graph = folder / file
        if not graph.is_file():
            raise ExportError(
                f"{option} {folder}: genai_config.json names {file}, which is not there. "
                "Copy the whole model folder again."
            )
        return Source(folder, "genai", graph, config, genai)
    if config and any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return Source(folder, "checkpoint", None, config, genai)
    if config and (folder / "model.onnx").is_file():
        return Source(folder, "optimum", folder / "model.onnx", config, genai)
    wanted = (
        "weights (*.safetensors) or model.onnx" if config else "config.json or genai_config.json"
    )
    raise ExportError(
        f"{option} {folder}: is not a model: it has no {wanted}. Give a Hugging Face folder, a "
        "name on the hub, or a folder with genai_config.json and model.onnx."
    )


def _genai(path: Path) -> dict[str, Any]:
    """`genai_config.json` with all sections that are read here; empty without the file."""
    genai = read_json(path)
    if not genai:
        return {}
    model = _object(genai, "model", path)
    model = {**model, "decoder": _object(model, "decoder", path)}
    return {**genai, "model": model, "search": _object(genai, "search", path)}


def _config(path: Path) -> dict[str, Any]:
    """`config.json`; empty without the file."""
    config = read_json(path)
    text = _object(config, "text_config", path) or config
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        if type(text.get(name, 0)) not in (int, type(None)):
            raise ExportError(
                f"{path}: {name} is {text[name]!r}; it must be a whole number. "
                "Copy the model folder again."
            )
    return config


def _object(content: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The object called `name` in the `content` of a file; empty if it is missing."""
    found = content.get(name) or {}
    if not isinstance(found, dict):
        raise ExportError(f"{path}: {name} must be an object. Copy the model folder again.")
    return found


def _download(name: str, option: str, on_progress: OnProgress) -> Path:
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise OptionError(
            f"{option} {name}: there is no such folder. Give a folder or a name on the hub."
        )
    try:
        from huggingface_hub import snapshot_download
        from tqdm.auto import tqdm
    except ImportError as error:
        raise install_line("huggingface-hub") from error

    class Bar(tqdm):  # type: ignore[misc]
        """Passes the hub's own progress on instead of drawing it."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.total and self.unit == "B":
                on_progress(f"Downloading {name}", min(self.n / self.total, 1.0))
            return bool(shown)

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_NOT_HUB_FILES,
                tqdm_class=Bar,
            )
        )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"{option} {name}: there is no such folder, and it could not be downloaded from "
            f"the hub ({type(error).__name__}: {reason}). Check the name and the connection, "
            "or give a folder."
        ) from error


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass
