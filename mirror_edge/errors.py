"""Everything that can go wrong, as one small tree.

`MirrorEdgeError` is what a caller catches. Its message names the file or option at fault, what was
wrong, and what to do; the command line prints it and exits with `exit_code`.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "BusyError",
    "ClosedError",
    "ContextError",
    "DataError",
    "DeviceError",
    "DraftLostError",
    "ExportError",
    "MirrorEdgeError",
    "MissingExtraError",
    "OptionError",
    "TemplateError",
]


class MirrorEdgeError(Exception):
    """Base of all errors of this package."""

    exit_code = 2


class OptionError(MirrorEdgeError):
    """An option or argument that cannot be honoured."""


class BundleError(MirrorEdgeError):
    """A bundle that is missing, damaged, newer than this program, or inconsistent."""


class ContextError(MirrorEdgeError):
    """A prompt that does not fit: empty, or longer than the context."""


class TemplateError(MirrorEdgeError):
    """A chat template that is missing or that failed on the given messages."""


class DataError(MirrorEdgeError):
    """A training or calibration file that cannot be used, named with its line."""


class DeviceError(MirrorEdgeError):
    """A device that is unknown, absent, too small, or that refuses a graph."""


class DraftLostError(DeviceError):
    """The draft's process died, hung or sent an invalid reply. Answers go on without it."""


class ExportError(MirrorEdgeError):
    """A model that cannot be exported, or whose exported graphs differ from the source."""


class MissingExtraError(MirrorEdgeError):
    """A package that an optional part needs is not installed; the message says how to get it."""


class BusyError(MirrorEdgeError):
    """A second answer was requested from a model that is still generating one."""


class ClosedError(MirrorEdgeError):
    """An answer was requested from a model that was closed, or loaded before a fork."""
