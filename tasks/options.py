"""Checks that the options of several tasks share."""

from __future__ import annotations

from harness import Task


def heads_divide_width(task: Task) -> None:
    """Checks the options `width` and `heads` of a task that has both.

    Raises:
        ValueError: if the heads of attention do not share the width evenly.
    """
    width, heads = getattr(task, "width", 0), getattr(task, "heads", 1)
    if width % heads:
        raise ValueError(f"heads: found {heads}, must divide width")


def positive(task: Task, *names: str) -> None:
    """Checks options that count or measure something: each is positive, of a list every entry, or nothing at all.

    Args:
        names: of options; one that the task does not have is passed over.

    Raises:
        ValueError: for the first that is not, as `name: found value, must be positive`.

    >>> from tasks.supervised import DigitsMLP
    >>> positive(DigitsMLP(hidden=(64, 32)), "hidden", "width")
    >>> DigitsMLP(hidden=(64, 0))
    Traceback (most recent call last):
    ValueError: hidden: found [64, 0], must be positive
    """
    for name in names:
        value = getattr(task, name, None)
        listed = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(entry > 0 for entry in listed):
            raise ValueError(f"{name}: found {listed if isinstance(value, list | tuple) else value}, must be positive")
