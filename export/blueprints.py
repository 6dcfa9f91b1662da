"""The Core ML packages of target and draft: their programs, with shapes and precisions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from mirror_edge.bundle import DraftSpec, ModelSpec, Precision, TargetSpec
from mirror_edge.export.compression import palettise, quantise
from mirror_edge.export.convert import Blueprint, write_package
from mirror_edge.export.decoder import Decoder, Linear
from mirror_edge.export.exit_head import Exit
from mirror_edge.export.origins import Role
from mirror_edge.export.programs import DraftPart, ExitHead, Prefix, Suffix
from mirror_edge.export.rotary import BRANCH_ROWS
from mirror_edge.export.stream_rows import StreamRows
from mirror_edge.export.streams import Streams
from mirror_edge.packages import Feature, Package

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = [
    "BYTES",
    "CANDIDATES",
    "CHUNK",
    "DRAFT_WIDTH",
    "PREFILL",
    "TARGET",
    "WIDTHS",
    "capacity",
    "chunks",
    "exit_head",
    "model_spec",
    "round_weights",
    "write_draft",
    "write_target",
]

TARGET = "target/target.mlpackage"
WIDTHS = (1, 2, 4, 8, 16)
"""Window widths, in rows, that the target's programs are made for."""
PREFILL = 128
"""Rows of a prompt's chunk."""
DRAFT_WIDTH = 32
CANDIDATES = 256
"""Candidates per row from the exit head: as many as a sampling step asks for."""
CHUNK = 1 << 30
"""Bytes of weights per package of the draft: the Neural Engine does not take large ones."""
BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.53}
"""Bytes of a weight, including its share of a scale or a palette."""


def model_spec(decoder: Decoder, context: int, precision: Precision, role: Role) -> ModelSpec:
    """A decoder as the manifest describes it."""
    spec, exact = decoder.spec, precision == "fp32"
    return ModelSpec(
        architecture=spec.architecture,
        layers=spec.layers,
        hidden=spec.hidden,
        vocabulary=spec.vocabulary,
        context=context,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        precision=precision,
        # Core ML keeps states in float16 only.
        cache="explicit" if exact or role == "draft" else "state",
        dtype="float32" if exact else "float16",
    )


def capacity(context: int, role: Role) -> int:
    """Rows of a cache: the context, and room for padding or for a draft's branches."""
    return 32 * math.ceil((context + (PREFILL if role == "target" else BRANCH_ROWS)) / 32)


def round_weights(decoder: Decoder, precision: Precision, role: Role) -> None:
    """Round a decoder's weights in place, and bring a draft's into channels.

    The GPU likes scales, the Neural Engine palettes.
    """
    if role == "draft":
        decoder.as_channels()
    if precision in {"fp16", "fp32"}:
        return
    bits = 4 if precision == "int4" else 8
    for layer in decoder.modules():
        if isinstance(layer, Linear) and bits == 4 and role == "draft":
            palettise(layer)
        elif isinstance(layer, Linear | nn.Embedding):
            quantise(layer, bits)


def exit_head(decoder: Decoder, leave: Exit, precision: Precision) -> ExitHead:
    """The exit head of a target whose weights are rounded."""
    size = decoder.spec.vocabulary if leave.tokens is None else len(leave.tokens)
    exits = ExitHead(decoder, leave, min(CANDIDATES, size))
    if leave.tokens is not None and precision in {"int4", "int8"}:
        quantise(exits.head, 4 if precision == "int4" else 8)
    return exits


def write_target(
    decoder: Decoder,
    spec: ModelSpec,
    exit_layer: int,
    exits: ExitHead,
    folder: Path,
    on_share: Callable[[float], None],
) -> tuple[TargetSpec, Package]:
    """Write the target's package into the bundle `folder`."""
    states = spec.cache == "state"
    room = capacity(spec.context, "target")
    prefix = Prefix(decoder, exit_layer, room, states=states)
    suffix = Suffix(decoder, exit_layer, room, states=states, chosen=False)
    chosen = Suffix(decoder, exit_layer, room, states=states, chosen=True)
    start, rows = (Feature(name, "int32", ((1,),)) for name in ("start", "rows"))
    kept = {} if states else {"keys": spec.dtype, "values": spec.dtype}

    def ids(*widths: int) -> Feature:
        return Feature("input_ids", "int32", tuple((1, width) for width in widths))

    def hidden(*widths: int) -> Feature:
        return Feature("hidden", spec.dtype, tuple((1, width, spec.hidden) for width in widths))

    def blueprint(part: Prefix | Suffix, output: str, *inputs: Feature) -> Blueprint:
        if states:
            return Blueprint(part, inputs, {output: spec.dtype}, ("keys", "values"))
        return Blueprint(part, (*inputs, *_past(part.cache, spec)), {output: spec.dtype, **kept})

    named = {"exit_ids": "int32", "exit_logprobs": spec.dtype}
    blueprints = {
        "prefix": blueprint(prefix, "hidden", ids(*WIDTHS), start),
        "prefix_prefill": blueprint(prefix, "hidden", ids(PREFILL), start),
        "suffix": blueprint(suffix, "logits", hidden(*WIDTHS), start),
        "suffix_prefill": blueprint(chosen, "logits", hidden(PREFILL), start, rows),
        "exit": Blueprint(exits, (hidden(*WIDTHS),), named),
    }
    (folder / TARGET).parent.mkdir(parents=True)
    package = write_package(blueprints, spec.dtype, folder / TARGET, on_share)
    size = spec.vocabulary if exits.tokens is None else len(exits.tokens)
    return TargetSpec(spec, exit_layer, size, prefix=TARGET, exit=TARGET, suffix=TARGET), package


def write_draft(
    decoder: Decoder,
    spec: ModelSpec,
    streams: Streams | None,
    folder: Path,
    on_share: Callable[[float], None],
) -> tuple[DraftSpec, dict[str, Package]]:
    """Write the draft's packages into the bundle `folder`; its weights are rounded already."""
    parts = list(chunks(decoder, spec.precision, CHUNK))
    names = [f"draft/draft-{at:02d}.mlpackage" for at in range(1, len(parts) + 1)]
    ahead = None if streams is None else StreamRows(streams, DRAFT_WIDTH)
    (folder / "draft").mkdir()
    packages = {}
    for at, (name, layers) in enumerate(zip(names, parts, strict=True)):
        last = layers.stop == spec.layers
        blueprints = {
            "draft": _draft_blueprint(DraftPart(decoder, layers, head=last), spec, DRAFT_WIDTH),
            "draft_prefill": _draft_blueprint(
                DraftPart(decoder, layers, head=False), spec, PREFILL
            ),
        }
        if ahead is not None:
            part = DraftPart(decoder, layers, head=last, streams=ahead)
            blueprints["draft_streams"] = _draft_blueprint(part, spec, DRAFT_WIDTH)

        def on_part(share: float, at: int = at) -> None:
            on_share((at + share) / len(parts))

        packages[name] = write_package(blueprints, spec.dtype, folder / name, on_part)
    count, through = (0, 0) if streams is None else (streams.count, streams.layers)
    draft = DraftSpec(spec, count, through, BRANCH_ROWS, graph=names[0])
    return draft, packages


def _draft_blueprint(part: DraftPart, spec: ModelSpec, width: int) -> Blueprint:
    layers, streams, room = part.layers, part.streams, capacity(spec.context, "draft")
    fed = Feature("input_ids", "int32", ((1, width),))
    if layers.start > 0:
        joined = streams is not None and layers.start > spec.layers - streams.layers
        rows = width * (1 + streams.count) if streams is not None and joined else width
        fed = Feature("hidden", spec.dtype, ((1, spec.hidden, 1, rows),))
    outputs = {"keys": spec.dtype, "values": spec.dtype}
    if part.head:
        outputs = {"logits": spec.dtype, **outputs}
    elif layers.stop < spec.layers:
        outputs = {"residual": spec.dtype, **outputs}
    inputs = (
        fed,
        Feature("position_ids", "int32", ((width,),)),
        Feature("attention_bias", spec.dtype, ((1, 1, width, room + width),)),
        *_past((len(layers), spec.kv_heads, room, spec.head_size), spec),
    )
    return Blueprint(part, inputs, outputs)


def _past(cache: tuple[int, ...], spec: ModelSpec) -> tuple[Feature, ...]:
    return tuple(Feature(f"past_{part}", spec.dtype, (cache,)) for part in ("keys", "values"))


def chunks(decoder: Decoder, precision: Precision, limit: int) -> Iterator[range]:
    """Consecutive layers whose weights stay under `limit` bytes, embedding and head included.

    A layer is never split: one that is larger gets a chunk of its own.
    """
    spec = decoder.spec
    ends = spec.vocabulary * spec.hidden
    first, total = 0, 0.0
    for index, layer in enumerate(decoder.layers):
        weights = sum(weight.numel() for weight in layer.parameters())
        weights += ends * ((index == 0) + (index == spec.layers - 1))
        size = weights * BYTES[precision]
        if index > first and total + size > limit:
            yield range(first, index)
            first, total = index, 0.0
        total += size
    yield range(first, spec.layers)
