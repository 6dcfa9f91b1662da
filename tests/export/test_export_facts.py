"""What is read off a checkpoint's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mirror_edge.export.attention import sliding_window
from mirror_edge.export.facts import probe_layers
from mirror_edge.export.source import Kind, Source


def source(config: dict[str, Any], kind: Kind = "checkpoint") -> Source:
    return Source(Path("model"), kind, None, config, {})


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"text_config": {"sliding_window": 512}}, 512),
    ],
)
def test_a_window_counts_when_it_is_in_use(config: dict[str, Any], window: int | None) -> None:
    assert sliding_window(source(config)) == window
    assert sliding_window(source(config, "genai")) is None


@pytest.mark.parametrize(
    ("kinds", "layers", "wanted"),
    [
        ([], 30, 2),
        ([], 1, 1),
        (["full"] * 30, 30, 2),
        ([*["sliding"] * 5, "full"] * 5, 30, 6),
    ],
)
def test_the_probe_has_a_layer_of_every_kind(kinds: list[str], layers: int, wanted: int) -> None:
    assert probe_layers(kinds, layers) == wanted
