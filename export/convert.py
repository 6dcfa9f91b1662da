"""From torch modules to the functions of one Core ML package, and its description."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mirror_edge.errors import ExportError
from mirror_edge.export.quiet import quiet
from mirror_edge.packages import Feature, Function, Package
from mirror_edge.runtimes.coreml.library import coremltools

__all__ = ["SYSTEM", "Blueprint", "write_package"]

SYSTEM = "iOS 18, macOS 15"
"""The first systems that support states and packages of several functions."""
_NOT_FOR_DECODERS = {
    f"common::{name}"
    for name in (
        *("lower_complex_dialect_ops", "image_input_preprocess", "guard_negative_gather_indices"),
        *("fuse_gelu_tanh_approximation", "fuse_gelu_exact", "fuse_leaky_relu", "fuse_prelu"),
        *("prelu_to_lrelu", "merge_consecutive_relus", "fuse_layernorm_or_instancenorm"),
        *("compose_conv1d", "add_conv_transpose_output_shape", "fuse_dilated_conv"),
        *("fuse_conv_scale", "fuse_conv_bias", "fuse_conv_batchnorm", "fuse_pad_conv"),
        *("fuse_elementwise_to_batchnorm", "use_reflection_padding", "merge_consecutive_paddings"),
        *("detect_concat_interleave", "concat_to_pixel_shuffle", "fuse_stack_split"),
        *("fuse_onehot_matmul_to_gather", "nullify_redundant_quantization_zero_point"),
        *("dequantize_quantize_pair_elimination", "dequantize_to_constexpr"),
        *(
            "distributive_quantized_binary_op_scale_normalization",
            "canonicalize_quantized_lut_pattern",
        ),
        "merge_affine_dequantize_with_consecutive_ops",
    )
}
"""Passes of coremltools that never apply to a decoder; they would take half as long again."""
_TORCH = {"int32": torch.int32, "float16": torch.float32, "float32": torch.float32}


@dataclass(frozen=True)
class Blueprint:
    """A function to convert: a module, its arguments in order, its results and states by name."""

    part: nn.Module
    inputs: tuple[Feature, ...]
    outputs: Mapping[str, str]
    """Data types by name."""
    states: tuple[str, ...] = ()
    """Names of buffers of the module."""


def write_package(
    blueprints: Mapping[str, Blueprint], dtype: str, path: Path, on_share: Callable[[float], None]
) -> Package:
    """Convert all, computing in `dtype`, into one package at `path`, in which they share weights.

    Raises:
        ExportError: when coremltools cannot convert one of them.
    """
    tools = coremltools()
    joined = tools.utils.MultiFunctionDescriptor()
    scratch, usual = path.with_suffix(".parts"), tempfile.tempdir
    scratch.mkdir()
    # coremltools leaves copies of all weights in the temporary folder until the program exits.
    tempfile.tempdir = str(scratch)
    try:
        for at, (name, blueprint) in enumerate(blueprints.items()):
            part = scratch / f"{name}.mlpackage"
            with quiet():
                _convert(tools, blueprint, dtype, part)
                joined.add_function(str(part), "main", name)
            on_share((at + 1) / (len(blueprints) + 1))
        joined.default_function_name = next(iter(blueprints))
        with quiet():
            tools.utils.save_multifunction(joined, str(path))
            gc.collect()  # otherwise the last copies are deleted later, with a warning
    finally:
        tempfile.tempdir = usual
        shutil.rmtree(scratch, ignore_errors=True)
    on_share(1.0)
    return _describe(tools, path)


def _convert(tools: Any, blueprint: Blueprint, dtype: str, path: Path) -> None:
    examples = tuple(
        torch.zeros(feature.shapes[0], dtype=_TORCH[feature.dtype]) for feature in blueprint.inputs
    )
    with torch.no_grad():
        traced = torch.jit.trace(blueprint.part.eval(), examples, check_trace=False)
    inputs = []
    for feature in blueprint.inputs:
        first, *more = feature.shapes
        shape = tools.EnumeratedShapes(list(feature.shapes), default=first) if more else first
        inputs.append(tools.TensorType(feature.name, shape, np.dtype(feature.dtype).type))
    outputs = [
        tools.TensorType(name, dtype=np.dtype(kind).type)
        for name, kind in blueprint.outputs.items()
    ]
    buffers = dict(blueprint.part.named_buffers())
    states = [
        tools.StateType(tools.TensorType(shape=tuple(buffers[name].shape), dtype=np.float16), name)
        for name in blueprint.states
    ]
    half = dtype == "float16"
    passes = tools.PassPipeline.DEFAULT
    passes.remove_passes(_NOT_FOR_DECODERS)
    try:
        tools.convert(
            traced,
            inputs=inputs,
            outputs=outputs,
            states=states or None,
            minimum_deployment_target=tools.target.iOS18,
            compute_precision=tools.precision.FLOAT16 if half else tools.precision.FLOAT32,
            skip_model_load=True,
            pass_pipeline=passes,
            package_dir=str(path),
        )
    except OSError:
        raise  # a full disk, for one
    except Exception as error:
        raise ExportError(f"coremltools could not convert {path.stem}: {error}") from error


def _describe(tools: Any, path: Path) -> Package:
    """The inputs, outputs and states of a package, from its specification."""
    spec = tools.models.utils.load_spec(str(path))
    kinds = tools.proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType

    def feature(entry: Any, array: Any, shapes: list[tuple[int, ...]]) -> Feature:
        return Feature(entry.name, kinds.Name(array.dataType).lower(), tuple(sorted(shapes)))

    functions = {}
    for description in spec.description.functions:
        program = spec.mlProgram.functions[description.name]
        block = program.block_specializations[program.opset]
        made = {output.name: output for op in block.operations for output in op.outputs}
        inputs, outputs, states = [], [], []
        for entry in description.input:
            array = entry.type.multiArrayType
            several = [tuple(shape.shape) for shape in array.enumeratedShapes.shapes]
            inputs.append(feature(entry, array, several or [tuple(array.shape)]))
        for entry in description.output:
            dims = made[entry.name].type.tensorType.dimensions
            shape = tuple(dim.constant.size for dim in dims)  # 0 where it is not constant
            outputs.append(feature(entry, entry.type.multiArrayType, [shape]))
        for entry in description.state:
            array = entry.type.stateType.arrayType
            states.append(feature(entry, array, [tuple(array.shape)]))
        functions[description.name] = Function(tuple(inputs), tuple(outputs), tuple(states))
    return Package(SYSTEM, functions)
