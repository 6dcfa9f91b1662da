"""From a checkpoint to one full ONNX graph, by ONNX Runtime GenAI's model builder."""

from __future__ import annotations

import gc
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

from mirror_edge.bundle import Precision
from mirror_edge.errors import ExportError
from mirror_edge.export.quiet import quiet
from mirror_edge.export.rotary import settle_positions, write_tables
from mirror_edge.export.source import Source, install_line, read_json

__all__ = ["build"]

_LAYER = re.compile(r"Reading layer (\d+)")


def build(
    source: Source,
    precision: Precision,
    folder: Path,
    on_share: Callable[[float], None],
    *,
    layers: int | None = None,
) -> Path:
    """Write the full graph of a checkpoint to `folder` (only its first `layers`, if given).

    Raises:
        ExportError: for a damaged checkpoint, or one that the builder cannot build.
        MissingExtraError: without the model builder.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third-party code on import
            from onnxruntime_genai.models.builder import create_model, parse_extra_options
    except ImportError as error:
        raise install_line(error.name or "onnxruntime-genai") from error

    # fp16 graphs with GroupQueryAttention are only built for GPU providers.
    provider = "webgpu" if precision == "fp16" else "cpu"
    # For these it would also fuse the norms of queries and keys, which only GPU kernels support.
    extra = ["hf_token=false", "fuse_qk_norm_gqa=false"]
    pictures = "text_config" in source.config  # for which the option below is not the decoder's
    extra += [f"num_hidden_layers={layers}"] if layers and not pictures else []
    if precision == "int4-mixed":
        # The LM head; of the layers, those that llama.cpp's mixtures also keep in more bits.
        extra.append("matmul_mixed_precision=last_matmul:int8,mixed_layers:int8")
        # An embedding that shares a head in 8 bits would be built with a wrong name.
        extra.append("shared_embeddings=false")
    count = layers or source.text_config.get("num_hidden_layers") or 1
    cache = folder / "cache"
    # Not None: some of the builder's models look the name up.
    width = "int4" if precision == "int4-mixed" else precision
    settled = (str(source.folder), str(source.folder), str(folder), width, provider, str(cache))
    lines = _Lines(lambda layer: on_share((layer + 1) / (count + 1)))
    try:
        with quiet(lines):
            options = parse_extra_options(*settled, extra)
            config = options["hf_details"]["hf_config"]
            if layers and pictures:
                config.num_hidden_layers = layers
            tables = settle_positions(config)
            create_model(*settled, **options)
            write_tables(folder / "model.onnx", tables)
    except Exception as error:
        _refuse_damage(source.folder)
        said = shorten(str(error), 300, placeholder=" …").rstrip(".")
        if isinstance(error, ImportError):
            raise ExportError(f"{source.folder}: cannot be read: {said}.") from error
        raise ExportError(
            f"{source.folder}: the model builder of onnxruntime-genai cannot build a graph of "
            f"{_architecture(source)} ({type(error).__name__}: {said}). If another tool can "
            "export this model to ONNX, give the folder that it wrote."
        ) from error
    gc.collect()  # the builder's model is a reference cycle, and as large as the checkpoint
    return folder / "model.onnx"


def _refuse_damage(folder: Path) -> None:
    """Refuse weights that cannot be read, such as an incomplete download."""
    from safetensors import SafetensorError, safe_open

    for index in folder.glob("*.index.json"):
        files = set(read_json(index).get("weight_map", {}).values())
        if lost := sorted(name for name in files if not (folder / name).is_file()):
            raise ExportError(f"{folder / lost[0]}: is missing. Download the model again.")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{path}: is damaged ({error}). Download it again.") from error


def _architecture(source: Source) -> str:
    names = source.config.get("architectures") or ["an unnamed architecture"]
    return str(names[0])


class _Lines(io.StringIO):
    """The builder's standard output, discarded except for the number of layers it has read."""

    def __init__(self, on_layer: Callable[[int], None]) -> None:
        super().__init__()
        self._on_layer = on_layer

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if found := _LAYER.search(text):
            self._on_layer(int(found[1]))
        return len(text)
