"""The kinds of values that options take."""

from __future__ import annotations

from numbers import Integral, Real

from mirror_edge.errors import OptionError

__all__ = ["require_number", "require_whole"]


def require_whole(name: str, value: object) -> None:
    """Refuse anything but a whole number.

    Raises:
        OptionError: naming the option.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{name} is {value!r}; it must be a whole number.")


def require_number(name: str, value: object) -> None:
    """Refuse anything but a number.

    Raises:
        OptionError: naming the option.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionError(f"{name} is {value!r}; it must be a number.")
