"""The screening of a grid, as it is written.

screening: {rule: oui, at: 0.1, thresholds: {critic: [0.3, 0.7], actor: 0.6}}
screening: {rule: early_return, at: 0.1, thresholds: {"cartpole/*": {return: 60}, "acrobot/*": {return: -400}}}
screening: {rule: early_return + oui, at: 0.1, thresholds: {from: oui-screening, recall: 0.8}}
screening: {rule: asha, at: 0.1, reduction: 4}
screening: {rule: median, at: 0.1, samples: 3}
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

from harness.options import nearest
from harness.planning.entries import Choice
from harness.planning.errors import Where, listed
from harness.registry import Registry
from harness.screening import NEIGHBOURS, QUANTITIES, RULES, Bounds, Screening, quantities

DEFAULTS = {"reduction": 4.0, "samples": 3.0}
"""Ray Tune's own."""


def check_screening(content: Any, where: Where, tasks: list[Choice], registry: Registry) -> Screening | None:
    """The screening of a grid.

    Raises:
        GridError: for an unknown rule, one whose signals a task does not have, a threshold that it has not, or a task
            without thresholds.
    """
    if content is None:
        return None
    own = NEIGHBOURS.get(content.rule)
    for name in DEFAULTS:
        if name != own and getattr(content, name) is not None:
            raise where.at(name).error(f"found {getattr(content, name):g}, allowed: nothing with rule {content.rule!r}")
    if own:
        if content.thresholds:
            raise where.at("thresholds").error(f"found some, allowed: none; {content.rule!r} compares trials")
        return Screening(content.rule, content.at, options={own: float(getattr(content, own) or DEFAULTS[own])})
    try:
        names = quantities(content.rule)
    except ValueError as error:
        rules = f", joined by '+'; or {' or '.join(NEIGHBOURS)} alone"
        raise where.at("rule").error(str(error).removeprefix("rule: ").replace(", joined by '+'", rules)) from None
    for task in tasks:
        _check_signals(content.rule, task, set(registry.item("task", task.name).offers), where.at("rule"))
    written, place = content.thresholds, where.at("thresholds")
    if "from" in written:
        return _fitted(content, place)
    if set(written) & set(names) or not all(isinstance(value, dict) for value in written.values()):
        written = {"*": written}
        bounds = {"*": _bounds(written["*"], names, place)}
    else:
        bounds = {glob: _bounds(own, names, place.at(glob)) for glob, own in written.items()}
    for glob in bounds:
        if not any(fnmatchcase(task.label, glob) for task in tasks):
            raise place.at(glob).unknown(glob, "task of this grid", [task.label for task in tasks])
    if missing := [task.label for task in tasks if not any(fnmatchcase(task.label, glob) for glob in bounds)]:
        raise place.error(f"found none for {missing[0]}, allowed: thresholds for every task")
    return Screening(content.rule, content.at, bounds)


def _check_signals(rule: str, task: Choice, offers: set[str], where: Where) -> None:
    """Refuses a rule that looks at what the task does not record: it would stop every trial."""
    for part in (name.strip() for name in rule.split("+")):
        if missing := sorted({QUANTITIES[name].needs for name in RULES[part]} - offers - {""}):
            possible = [r for r, names in RULES.items() if {QUANTITIES[name].needs for name in names} <= offers | {""}]
            raise where.error(
                f"found {part!r}, whose signals need {', '.join(missing)}, which {task.label} does not offer, "
                f"allowed: {listed([*possible, *NEIGHBOURS])}{nearest(part, possible)}"
            )


def _fitted(content: Any, where: Where) -> Screening:
    written = content.thresholds
    if extra := [name for name in written if name not in ("from", "recall")]:
        raise where.at(extra[0]).unknown(extra[0], "field beside `from`", ["recall"])
    recall = written.get("recall", 0.8)
    if not isinstance(written["from"], str):
        raise where.at("from").found(written["from"], "the name of a finished grid")
    if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 < recall <= 1:
        raise where.at("recall").found(recall, "a share above 0, at most 1")
    return Screening(content.rule, content.at, source=written["from"], recall=float(recall))


def _bounds(written: dict[str, Any], names: tuple[str, ...], where: Where) -> Bounds:
    bounds: Bounds = {}
    for name, value in written.items():
        if name not in names:
            raise where.at(name).error(f"found {name!r}, allowed: {listed(names)}{nearest(name, names)}")
        bounds[name] = _interval(value, where.at(name))
    if missing := [name for name in names if name not in bounds]:
        raise where.error(f"found nothing for {missing[0]!r}, allowed: LOW, or [LOW, HIGH]; null leaves a side open")
    return bounds


def _interval(value: Any, where: Where) -> tuple[float, float]:
    ends = value if isinstance(value, list) else [value, None]
    numbers = [end for end in ends if end is not None]
    if len(ends) != 2 or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise where.found(value, "LOW, or [LOW, HIGH]; null leaves a side open")
    low, high = -math.inf if ends[0] is None else float(ends[0]), math.inf if ends[1] is None else float(ends[1])
    if low > high:
        raise where.found(value, "LOW below HIGH")
    return low, high
