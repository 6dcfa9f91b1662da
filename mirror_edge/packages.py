"""What a bundle's Core ML packages contain: their functions, with inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror_edge.errors import BundleError
from mirror_edge.fields import checked

__all__ = ["Feature", "Function", "Package", "read_package"]


@dataclass(frozen=True)
class Feature:
    """An input, an output or a state of a function."""

    name: str
    dtype: str
    """int32, float16 or float32."""
    shapes: tuple[tuple[int, ...], ...]
    """The shapes it may have; in an output's shape, 0 stands for the number of rows fed."""


@dataclass(frozen=True)
class Function:
    """One program of a package. A package's programs share their weights."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]

    def shapes(self, name: str) -> tuple[tuple[int, ...], ...]:
        """The shapes that an input, output or state may have."""
        features = (*self.inputs, *self.outputs, *self.states)
        return next(feature.shapes for feature in features if feature.name == name)


@dataclass(frozen=True)
class Package:
    """One ``.mlpackage``."""

    system: str
    """The oldest operating system that runs it."""
    functions: Mapping[str, Function]


def read_package(raw: object, path: Path, where: str) -> Package:
    """A package from the manifest at `path`.

    Raises:
        BundleError: naming what is missing or mistyped.
    """
    package = checked(Package, raw, path, where)
    if not isinstance(package["functions"], dict):
        raise BundleError(f"{path}: {where}.functions must be an object. Export again.")
    functions = {}
    for name, content in package["functions"].items():
        at = f"{where}.functions.{name}"
        kinds = checked(Function, content, path, at)
        functions[name] = Function(
            **{kind: _features(found, path, f"{at}.{kind}") for kind, found in kinds.items()}
        )
    return Package(package["system"], functions)


def _features(raw: object, path: Path, where: str) -> tuple[Feature, ...]:
    if not isinstance(raw, list):
        raise BundleError(f"{path}: {where} must be a list. Export again.")
    return tuple(_feature(entry, path, f"{where}[{at}]") for at, entry in enumerate(raw))


def _feature(raw: object, path: Path, where: str) -> Feature:
    found = checked(Feature, raw, path, where)
    shapes: Any = found["shapes"]
    try:
        found["shapes"] = tuple(tuple(int(size) for size in shape) for shape in shapes)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{path}: {where}.shapes must be lists of sizes. Export again."
        ) from error
    return Feature(**found)
