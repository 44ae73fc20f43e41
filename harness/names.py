"""Names of methods as a grid writes them: `oui_decay`, or a control of it such as `mean_of(oui_decay)`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONTROLS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "mean_of": {},
    "shuffled": {},
    "replay": {},
    "delayed": {"delay": {"type": "int", "default": 1}},
}
"""The controls, each with the options that it has beside those of its method."""

SEEDS_AHEAD: Mapping[str, int] = {"mean_of": 0, "replay": 1}
"""Controls that need the actions of a run of their method: of how many seeds further on."""


def split_control(name: str) -> tuple[str, str]:
    """The control and the method of a name; the control is empty for a method by itself.

    >>> split_control("mean_of(oui_decay)"), split_control("oui_decay")
    (('mean_of', 'oui_decay'), ('', 'oui_decay'))
    """
    match = re.fullmatch(r"(\w+)\(([^()]+)\)", name)
    return (match[1], match[2]) if match else ("", name)
