"""What MLflow shall show of a trial: a function of the results folder alone. Nothing here imports MLflow."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.recording.grids import SubmittedTrial, held
from harness.recording.log import LOG, OUTPUT, last
from harness.recording.records import ACTIONS, Commit, Result, Status, TrialRecords

RUNNING, UNFINISHED = "running", "unfinished"
"""What a trial without a result is: some process is at it, or none is and the next run goes on with it."""

MLFLOW_STATUS: dict[str, str] = {
    Status.FINISHED: "FINISHED",
    Status.DIVERGED: "FAILED",
    Status.SCREENED: "KILLED",
    Status.FAILED: "FAILED",
    Status.OUT_OF_MEMORY: "FAILED",
    Status.TIMED_OUT: "KILLED",
    Status.BLOCKED: "SCHEDULED",
    Status.LOST: "KILLED",
    RUNNING: "RUNNING",
    UNFINISHED: "KILLED",
}
"""FINISHED is a trial that has its test score, FAILED one that went wrong by itself, KILLED one that was ended, SCHEDULED
one that waits for another. The tag `status` says which exactly."""

Point = tuple[str, float, int, int]
"""A metric's key, value, timestamp in milliseconds, and step."""


@dataclass(frozen=True)
class Content:
    """A run: everything but its points and its files."""

    name: str
    start: int
    """Milliseconds, as MLflow has it."""
    status: str
    """MLflow's."""
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    end: int | None = None
    dataset: tuple[str, str, str] | None = None
    """Name, digest and, as JSON, where it comes from."""


@dataclass(frozen=True)
class Summary:
    """What the parent run needs to know of a trial."""

    status: str
    settled: bool
    """Whether nothing will change without another submission."""
    ended: float


@dataclass(frozen=True)
class Snapshot:
    """What the records of a trial say at one moment."""

    trial: SubmittedTrial
    records: TrialRecords
    commit: Commit | None
    result: Result | None
    status: str

    @property
    def summary(self) -> Summary:
        """The part that is kept between passes."""
        result = self.result
        return Summary(self.status, result is not None and result.status.done, result.ended if result else 0.0)

    @property
    def chunks(self) -> list[str]:
        """The committed chunks of records."""
        return self.commit.chunks if self.commit else []

    @property
    def start(self) -> int:
        """When the trial was started; one that starts anew has another time, one that goes on has the same."""
        started = self.commit.started if self.commit else 0.0
        if not started and self.result:
            started = self.result.started or self.result.ended
        return milliseconds(started)


def snapshot(trial: SubmittedTrial, records: TrialRecords) -> Snapshot | None:
    """The state of a trial, or None if there is nothing to show yet.

    Raises:
        RecordsError: if its result or its commit is damaged.
    """
    while True:
        stamp = _stamp(records.folder / "result.json")
        result, commit = records.result(), records.commit()
        if _stamp(records.folder / "result.json") == stamp:  # otherwise the two may not belong together
            break
    if result is None and commit is None:
        return None
    status = str(result.status) if result else RUNNING if held(records.folder) else UNFINISHED
    return Snapshot(trial, records, commit, result, status)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def trial_content(snapshot: Snapshot, grid: str, user: str, planned: bool) -> Content:
    """The run of a trial.

    Args:
        planned: whether the grid's newest plan still names the trial.
    """
    trial, result = snapshot.trial, snapshot.result
    tags = {
        "grid": grid,
        "hash": trial.hash,
        "task": trial.task_label,
        "method": trial.method_label,
        "cell": trial.cell,
        "seed": trial.seed,
        "code": result.code if result else snapshot.commit.code if snapshot.commit else trial.code,
        "status": snapshot.status,
        "attempt": str(snapshot.commit.attempt if snapshot.commit else result.attempt if result else 1),
        "mlflow.user": user,
        "mlflow.source.name": f"harness run {grid}",
        "mlflow.source.type": "LOCAL",
    }
    if snapshot.chunks:
        tags["records"] = snapshot.chunks[-1]
    if result and result.code != trial.code:
        tags["stale"] = "true"
    if not planned:
        tags["planned"] = "false"
    if result and result.reason:
        tags["reason"] = result.reason[:1000]
        tags["mlflow.note.content"] = f"**{snapshot.status}**: {literal(result.reason[:1000])}"
    commit = (result.environment.get("git") or {}).get("commit") if result else None
    if commit:
        tags["mlflow.source.git.commit"] = commit
    if result and "gpu" in result.environment:
        tags["gpu"] = str(result.environment["gpu"])
    return Content(
        name=f"{trial.cell} · seed {trial.seed}",
        start=snapshot.start,
        status=MLFLOW_STATUS[snapshot.status],
        tags=tags,
        params=params(trial.spec, result.values if result else {}),
        end=_end(snapshot),
        dataset=_dataset(trial.spec),
    )


def _end(snapshot: Snapshot) -> int | None:
    if snapshot.result:
        return milliseconds(snapshot.result.ended)
    if snapshot.status == RUNNING:
        return None
    times = [record["time"] for record in snapshot.records.read(snapshot.chunks[-1:]) if "time" in record]
    return milliseconds(times[-1]) if times else snapshot.start


def _dataset(spec: Mapping[str, Any]) -> tuple[str, str, str] | None:
    if not spec["data"]:
        return None
    source = {"task": spec["task"], "version": spec["task_version"], "options": spec["task_options"]}
    return spec["task"], spec["data"][:36], json.dumps(source, sort_keys=True)


def params(spec: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, str]:
    """The resolved recipe by field, options as `task.OPTION` and `METHOD.OPTION`, and what was taken from other trials.

    A field that holds nothing has no param; one that is taken from another trial has it once the value is known.

    >>> spec = {"recipe": {"lr": 0.1, "clip": None}, "task_options": {"hidden": [8, 8]}, "methods": []}
    >>> params(spec, {"recipe.lr": 0.2})
    {'lr': '0.2', 'task.hidden': '[8, 8]'}
    """
    found = dict(spec["recipe"]) | {f"task.{name}": value for name, value in spec["task_options"].items()}
    for part in spec["methods"]:
        found |= {f"{part['name']}.{name}": value for name, value in part["options"].items()}
    for path, value in values.items():
        match path.split("."):
            case ["methods", index, option]:
                found[f"{spec['methods'][int(index)]['name']}.{option}"] = value
            case ["methods", index]:
                sources = {required["path"]: required["hash"] for required in spec["requires"]}
                found[f"{spec['methods'][int(index)]['name']}.{ACTIONS}"] = f"of trial {sources[path]}"
            case [_, field]:
                found[field] = value
    return {
        valid_key(name): value if isinstance(value, str) else json.dumps(value)
        for name, value in found.items()
        if value is not None
    }


def milliseconds(seconds: float) -> int:
    """A time as MLflow has it."""
    return int(seconds * 1000)


@lru_cache(maxsize=65536)
def valid_key(name: str) -> str:
    """A name as MLflow takes it: what it does not allow becomes a dot, and no part of a path is empty.

    >>> valid_key("mean_of(oui_decay).gap"), valid_key("/probe//x")
    ('mean_of.oui_decay.gap', 'probe/x')
    """
    plain = re.sub(r"\.?[^\w\-./: ]+\.?", ".", name, flags=re.ASCII)
    return posixpath.normpath(plain.strip("/. "))[:250]


def points(snapshot: Snapshot, after: str | None) -> list[Point]:
    """The finite metrics of the chunks that were committed after the chunk `after`."""
    chunks = snapshot.chunks
    found = []
    for record in snapshot.records.read(chunks[chunks.index(after) + 1 :] if after else chunks):
        if "metrics" in record:
            step, time = record["step"], milliseconds(record["time"])
            found += [
                (valid_key(name), value, time, step)
                for name, value in record["metrics"].items()
                if math.isfinite(value)
            ]
    return found


def final_points(snapshot: Snapshot) -> list[Point]:
    """The final metrics, at the last step.

    The curves of training, time and system end in the records. What was measured at the selected checkpoint is not a
    point of the validation curve: it goes under `selected/`.
    """
    result = snapshot.result
    if result is None:
        return []
    found = []
    for name, value in result.metrics.items():
        family = name.split("/")[0]
        if family in ("train", "time", "system", "probe") or not math.isfinite(value):
            continue
        key = "selected/step" if name == "selected_step" else f"selected/{name}" if family == "val" else name
        found.append((valid_key(key), float(value), milliseconds(result.ended), result.steps))
    return found


def files(snapshot: Snapshot) -> dict[str, str]:
    """The files of an ended trial by name: traceback, pictures, actions of its method, structured log, what it printed."""
    if snapshot.result is None:
        return {}
    found = {"error.txt": snapshot.result.error} if snapshot.result.error else {}
    pictures = sorted((snapshot.records.folder / "pictures").glob("*.svg"))
    found |= {f"pictures/{picture.name}": picture.read_text(encoding="utf-8") for picture in pictures}
    folders = [snapshot.records.folder / str(attempt) for attempt in snapshot.records.attempts()]
    texts = {"log.jsonl": LOG, "output.txt": OUTPUT}
    found |= {name: text for name, file in texts.items() if (text := last(folder / file for folder in folders))}
    actions = [json.dumps(record) for record in snapshot.records.read(snapshot.chunks) if "action" in record]
    return found | ({"actions.jsonl": "\n".join(actions) + "\n"} if actions else {})


def literal(text: str) -> str:
    """A text that Markdown takes literally."""
    plain = " ".join(text.replace("`", "'").replace("|", "\\|").split())
    return f"`{plain}`" if plain else ""
