"""A TOML file, read field by field: every error names the file and the field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mirror_edge.errors import DataError

__all__ = ["Fields"]


class Fields:
    """One table of the file.

    Each method that reads a field raises `DataError` if the field is missing or invalid.
    """

    def __init__(self, file: str, name: str, fields: dict[str, Any]) -> None:
        """Read from `fields`, the table `name`; an empty name is the top level."""
        self._file, self._name, self._fields = file, name, fields
        self._known: set[str] = set()

    def __contains__(self, field: str) -> bool:
        """Whether the field is present; `nothing_else` then accepts it."""
        self._known.add(field)
        return field in self._fields

    def error(self, field: str, problem: str) -> DataError:
        """The error to raise about a field."""
        where = f"{self._name}.{field}" if self._name else field
        return DataError(f"{self._file}: {where} {problem}.")

    def nothing_else(self) -> None:
        """Check that every field was read or asked for.

        Raises:
            DataError: naming one that was not.
        """
        for field in self._fields:
            if field not in self._known:
                known = ", ".join(sorted(self._known))
                raise self.error(field, f"is not a field of a profile; the fields here are {known}")

    def table(self, field: str) -> Fields:
        """A nested table."""
        value = self._take(field, dict, "a table")
        return Fields(self._file, f"{self._name}.{field}" if self._name else field, value)

    def tables(self, field: str) -> list[Fields]:
        """A list of at least one table."""
        values = self._take(field, list, "a list of tables, [[" + field + "]]")
        if not values or not all(isinstance(value, dict) for value in values):
            raise self.error(field, f"must be a list of tables, [[{field}]]")
        return [Fields(self._file, f"{field}[{i}]", value) for i, value in enumerate(values)]

    def text(self, field: str) -> str:
        """A string."""
        value: str = self._take(field, str, "a string")
        return value

    def number(
        self, field: str, default: float | None = None, at_most: float = float("inf")
    ) -> float:
        """A number from 0 to `at_most`; `default`, if given, where the field is missing."""
        if default is not None and field not in self:
            return default
        return self._in_range(field, self._take(field, (int, float), "a number"), at_most)

    def numbers(self, field: str, at_most: float = float("inf")) -> tuple[float, ...]:
        """A list of at least one number from 0 to `at_most`."""
        values: Sequence[Any] = self._take(field, list, "a list of numbers")
        if not values or not all(type(value) in (int, float) for value in values):
            raise self.error(field, "must be a list of numbers")
        return tuple(self._in_range(field, value, at_most) for value in values)

    def wholes(self, field: str) -> tuple[int, ...]:
        """A list of at least one whole number, each 1 or more."""
        values: Sequence[Any] = self._take(field, list, "a list of whole numbers")
        if not values or not all(type(value) is int and value > 0 for value in values):
            raise self.error(field, "must be a list of whole numbers, 1 or more")
        return tuple(values)

    def either_number_or_numbers(self, field: str, at_most: float) -> float | tuple[float, ...]:
        """A number, or a list of at least one."""
        if isinstance(self._fields.get(field), list):
            return self.numbers(field, at_most)
        return self.number(field, at_most=at_most)

    def whole(self, field: str, default: int | None = None, *, or_all: bool = False) -> Any:
        """A whole number, 1 or more; with `or_all`, None if it is `"all"`."""
        if default is not None and field not in self:
            return default
        wanted = "a whole number, 1 or more" + (', or "all"' if or_all else "")
        value = self._take(field, (int, str) if or_all else int, wanted)
        if or_all and value == "all":
            return None
        if isinstance(value, str) or value < 1:
            raise self.error(field, f"is {value!r}; it must be {wanted}")
        return value

    def _in_range(self, field: str, value: float, at_most: float) -> float:
        if not 0.0 <= value <= at_most or value == float("inf"):
            allowed = "0 or more" if at_most == float("inf") else f"from 0 to {at_most:g}"
            raise self.error(field, f"is {value}; it must be {allowed}")
        return float(value)

    def _take(self, field: str, kinds: type | tuple[type, ...], wanted: str) -> Any:
        self._known.add(field)
        if field not in self:
            raise self.error(field, f"is missing; it must be {wanted}")
        value = self._fields[field]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self.error(field, f"is {value!r}; it must be {wanted}")
        return value
