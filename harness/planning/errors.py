"""What is wrong with a grid, said in one line: the file, the field, what was found, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.options import OptionError, Schema, check, nearest, short


class GridError(ValueError):
    """A grid that cannot be planned. Nothing has been started and nothing written.

    >>> print(GridError("grid.yaml", "seeds", "found -1, allowed: at least 1"))
    grid.yaml: seeds: found -1, allowed: at least 1
    """

    def __init__(self, file: str, field: str, message: str) -> None:
        super().__init__(f"{file}: {field}: {message}" if field else f"{file}: {message}")
        self.file, self.field, self.message = file, field, message


@dataclass(frozen=True)
class Where:
    """A place in a grid: its file and the path of the field.

    >>> Where("grid.yaml").at("tasks", 1, "width").path
    'tasks[1].width'
    """

    file: str
    path: str = ""

    def at(self, *keys: str | int) -> Where:
        """A place below this one."""
        path = self.path
        for key in keys:
            path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else key
        return Where(self.file, path)

    def error(self, message: str) -> GridError:
        """An error at this place."""
        return GridError(self.file, self.path, message)

    def found(self, value: Any, allowed: str) -> GridError:
        """An error at this place: `found X, allowed: Y`."""
        return self.error(f"found {short(value)}, allowed: {allowed}")

    def unknown(self, name: str, what: str, known: Iterable[str]) -> GridError:
        """An error at this place: a name that is none of those known."""
        names = list(known)
        return self.error(f"found {short(name)}, which is no {what}, allowed: {listed(names)}{nearest(name, names)}")

    def check(self, value: Any, schema: Schema) -> Any:
        """The value as its option's type.

        Raises:
            GridError: if it does not fit.
        """
        try:
            return check(value, schema, self.path)
        except OptionError as error:
            path, _, message = str(error).partition(": ")
            raise GridError(self.file, path, message) from None


def blame(error: Exception, places: Mapping[str, Where], otherwise: Where) -> GridError:
    """The error of an author's check, `lr: found -1, must be positive`, at the place that gave that value."""
    name, colon, message = str(error).partition(": ")
    if isinstance(error, ValueError) and colon and name in places:
        return places[name].error(message)
    return otherwise.error(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")


def listed(names: Iterable[str]) -> str:
    """Names as an error lists them.

    >>> listed([])
    'none'
    """
    return ", ".join(names) or "none"
