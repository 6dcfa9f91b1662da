"""Fixtures: tiny random models, made once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests share tiny.py

from tiny import Checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def third_party_warnings() -> Iterator[None]:
    """Warnings of torch and transformers about themselves are none of ours."""
    with warnings.catch_warnings():
        for module in ("torch", "transformers", "huggingface_hub", "onnx", "onnxruntime", "numpy"):
            warnings.filterwarnings("ignore", module=module)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Makes the checkpoint of an architecture, once: ``checkpoint("Llama", sliding_window=16)``."""
    made: dict[str, Path] = {}

    def make(architecture: str, **config: Any) -> Path:
        key = repr((architecture, sorted(config.items())))
        if key not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[key] = save_checkpoint(
                    tmp_path_factory.mktemp(architecture), architecture, config
                )
        return made[key]

    return make


@pytest.fixture(scope="session")
def target(checkpoint: Checkpoint) -> Path:
    return checkpoint("Llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def draft(checkpoint: Checkpoint) -> Path:
    return checkpoint("Llama", tie_word_embeddings=True, num_hidden_layers=2)


@pytest.fixture(scope="session")
def genai(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target as a folder in ONNX Runtime GenAI's format, fp32."""
    from mirror_edge.export.builder import build
    from mirror_edge.export.source import locate

    folder = tmp_path_factory.mktemp("genai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(locate(target, "TARGET", lambda *_: None), "fp32", folder, lambda _: None)
    return folder
