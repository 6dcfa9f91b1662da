"""Graphs compiled by a provider, kept for the next start."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from mirror_edge import kept
from mirror_edge.runtimes.onnx.placement import nodes_on

if TYPE_CHECKING:
    from mirror_edge.runtimes.onnx.session import Setup

__all__ = ["compiled"]

_log = logging.getLogger("mirror_edge")

_GRAPH, _NODES = "graph.onnx", "nodes.json"


def compiled(graph: Path, setup: Setup) -> tuple[Path, int] | None:
    """The compiled form of `graph`, made now or earlier, and the original's number of nodes.

    None if it cannot be stored.

    Raises:
        DeviceError: if the provider leaves part of the graph to another.
    """
    place = setup.place
    key = {
        "bundle": setup.bundle,
        "graph": graph.name,
        "onnxruntime": ort.__version__,
        "provider": place.provider.name,
        "package": place.provider.version,
        "device": place.provider.identity(place.device),
        "options": json.dumps(dict(place.provider.options(place.device)), sort_keys=True),
    }

    def compile_into(folder: Path) -> None:
        options = setup.options()
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_embed_mode", "0")
        options.add_session_config_entry("ep.context_file_path", str(folder / _GRAPH))
        session = place.open(graph, options)
        count = nodes_on(session, place.provider.name, str(graph))
        (folder / _NODES).write_text(json.dumps(count), encoding="utf-8")

    try:
        folder = kept.entry("compiled", key, compile_into)
        return folder / _GRAPH, json.loads((folder / _NODES).read_text(encoding="utf-8"))
    except OSError as error:
        _log.warning("%s: its compiled form cannot be stored: %s", graph, error)
        return None
