"""Units on Ray Tune: a loop of Tuners, each of which may end at any time without losing anything."""

from __future__ import annotations

import functools
import logging
import math
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.recording.records import Commit, TrialRecords
from harness.resources import Resources, this_machine
from harness.running.stalling import Stall, alive, shortage
from harness.running.units import Unit

TUNER_UNITS = 2000
"""Units of one Tuner: its snapshots and its memory grow with them."""

ENDS_TO_SUSPECT = 3
"""A unit that was running at this many unexpected ends of a Tuner runs alone, and then counts as out of memory."""

TRIES_TO_LOCK = 5
"""A trial that another process is at is tried so often in a row without a new commit of it, half a minute each: a node that
was cut off ends within one or two."""

SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "300",
    "TUNE_MAX_PENDING_TRIALS_PG": "8",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
}
"""Ray reads these when it is imported or when a Tuner starts."""


class Infeasible(ValueError):
    """A request that no node can ever meet: Tune would wait for ever."""


class Unwritable(ValueError):
    """A results folder that cannot be written from the start."""


ROOM = 1 << 20
"""Bytes that must be free in the results folder for anything to start."""


class Infrastructure(RuntimeError):
    """What a grid runs on fails: exit status 3."""


class Listener(Protocol):
    """Hears of units while they run."""

    def started(self, hash: str) -> None:
        """A trial runs."""

    def moved(self, hash: str, step: int) -> None:
        """A trial is at a step."""

    def lost(self, hash: str) -> None:
        """A trial has lost its worker, and waits for another."""

    def ended(self, hash: str, outcome: str) -> None:
        """A trial has ended: a status, or `interrupted`, `locked`, `unwritable: …`."""

    def tick(self) -> None:
        """Some time has passed."""


@dataclass
class Outcome:
    """What became of units: outcomes by hash, and the units that were given up."""

    ended: dict[str, str] = field(default_factory=dict)
    lost: list[Unit] = field(default_factory=list)
    out_of_memory: list[Unit] = field(default_factory=list)
    interrupted: bool = False

    def locked(self, units: Sequence[Unit]) -> list[Unit]:
        """Those units with a trial that another process was at: a node that was cut off, or another grid."""
        return [unit for unit in units if any(self.ended.get(trial.hash) == "locked" for trial in unit.trials)]

    def forget(self, unit: Unit) -> None:
        """Takes back what is known of a unit that is tried once more."""
        for trial in unit.trials:
            self.ended.pop(trial.hash, None)

    def unwritable(self) -> str | None:
        """Why the results folder can no longer be written, if so."""
        return next((outcome for outcome in self.ended.values() if outcome.startswith("unwritable")), None)


@functools.cache
def own_token() -> str:
    """The token of the clusters that this process starts, one after the other: Ray reads it once in a process."""
    return secrets.token_hex(32)


@contextmanager
def cluster(address: str | None, cpus: int | None = None) -> Iterator[Any]:
    """Ray, started here on this machine alone or joined at `address`; always in token mode.

    A local cluster gets a token of its own, which nothing else knows and which ends with this process.

    Raises:
        Infrastructure: if there is no cluster to be had.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_AUTH_MODE"] = "token"
    if address is None:
        os.environ["RAY_AUTH_TOKEN"] = own_token()
    import ray

    own = {"address": "local", "num_cpus": cpus, "object_store_memory": 128 << 20}  # never a cluster that runs beside
    options: dict[str, Any] = {"address": address} if address else own
    options |= {"include_dashboard": None if address else False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises many kinds here, and each of them means that there is no cluster
        where = f"the cluster at {address}" if address else "Ray on this machine"
        raise Infrastructure(f"{where} does not answer ({type(error).__name__}: {error})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_feasible(
    requests: Sequence[Resources], nodes: Sequence[dict[str, Any]], types: Sequence[dict[str, float]] = ()
) -> None:
    """Refuses a request that fits on no node.

    Args:
        requests: what units ask for.
        nodes: as `ray.nodes()` gives them.
        types: the resources of each kind of node that an autoscaler can add, as many as it takes.

    Raises:
        Infeasible: naming the request and the largest node.
    """
    held = alive(nodes)
    for resources in dict.fromkeys(requests):
        if lack := shortage(resources, [*held, *list(types) * resources.ranks]):
            raise Infeasible(lack)


def this_node(cpus: int | None) -> dict[str, Any]:
    """This machine as one of `ray.nodes()`, before Ray is started; GPUs are left to Ray to find."""
    return {"Alive": True, "Resources": this_machine() | {"GPU": math.inf} | ({"CPU": cpus} if cpus else {})}


def _size(unit: Unit) -> tuple[float, ...]:
    asked = unit.resources
    return tuple(asked.ranks * amount for amount in (asked.gpus, asked.cpus, asked.memory or 0))


def queue(units: Sequence[Unit]) -> list[Unit]:
    """Units class by class, the largest requests first, so that workers are reused and large units do not starve."""
    return sorted(units, key=_size, reverse=True)


def run_units(units: Sequence[Unit], settings: dict[str, Any], listener: Listener, scheduler: Any = None) -> Outcome:
    """Runs units to their ends on the cluster that this process is connected to.

    Args:
        units: what is to run; records say what becomes of it.
        settings: what `Worker` takes: `results`, `plugins`, `commit_every`, `report_every`; and `slots`, how many trials
            run at a time.
        listener: hears of progress.
        scheduler: a Tune scheduler; first in, first out unless given.

    Raises:
        Infrastructure: if the cluster is gone, Tune ends again and again before a unit has a worker, or what is left fits on
            no node and none has come.
    """
    outcome, suspects, tries, seen = Outcome(), Counter[str](), Counter[str](), dict[str, object]()
    waiting = queue(units)
    attempt = idle = 0
    while waiting and not outcome.interrupted and not outcome.unwritable():
        alone = [unit for unit in waiting if suspects[unit.name] >= ENDS_TO_SUSPECT]
        batch = alone[:1] or waiting[:TUNER_UNITS]
        attempt += 1
        watch = Watch(batch, listener, outcome)
        crashed = _fit(batch, settings, watch, attempt, scheduler)
        if watch.stalled:
            raise Infrastructure(f"{watch.stalled}; a rerun goes on once there is one")
        settled = watch.settled()
        idle = idle + 1 if crashed and watch.idle() else 0
        if crashed:
            _check_alive()
            if idle == ENDS_TO_SUSPECT:
                raise Infrastructure(f"Ray Tune ended {idle} times in a row before anything started; a rerun goes on")
            suspects.update(watch.running())
            if alone and batch[0].name not in settled:
                outcome.out_of_memory.append(batch[0])
                settled.add(batch[0].name)
        elif len(settled) < len(batch):
            outcome.interrupted = True
        waiting = [unit for unit in waiting if unit.name not in settled]
        for unit in outcome.locked(batch):
            now = _stand(unit, Path(settings["results"]))
            tries[unit.name] = tries[unit.name] + 1 if seen.get(unit.name, now) == now else 0
            seen[unit.name] = now
            if tries[unit.name] < TRIES_TO_LOCK:
                outcome.forget(unit)
                waiting.append(unit)
    return outcome


def _stand(unit: Unit, results: Path) -> list[tuple[list[int], Commit | None]]:
    """Where the trials of a unit are: whoever is at one of them and gets on moves it."""
    records = [TrialRecords(results, trial.hash) for trial in unit.trials]
    return [(trial.attempts(), trial.commit()) for trial in records]


def _check_alive() -> None:
    """Tells the end of one Tuner from the end of the cluster.

    Raises:
        Infrastructure: if no node answers.
    """
    import ray

    try:
        alive = [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    except Exception as error:  # a client without its cluster raises many kinds
        raise Infrastructure(f"the cluster is gone ({type(error).__name__}); a rerun goes on") from error
    if not alive:
        raise Infrastructure("the cluster is gone; a rerun goes on")


def _present() -> list[dict[str, Any]]:
    """The resources of each node that is there.

    Raises:
        Infrastructure: if none answers.
    """
    import ray

    _check_alive()
    return alive(ray.nodes())


class Watch:
    """Keeps book of one Tuner's units, from what its callback and its search hear."""

    def __init__(self, units: Sequence[Unit], listener: Listener, outcome: Outcome) -> None:
        self.units = {unit.name: unit for unit in units}
        self.listener, self.outcome = listener, outcome
        self._cells = {trial.hash: unit.cell for unit in units for trial in unit.trials}
        self._carried: dict[str, list[str]] = {}
        self._started: set[str] = set()
        self._begun: set[str] = set()
        self._given_up: set[str] = set()
        self._seconds: dict[str, list[float]] = {}
        self._stall = Stall(self._waiting, _present)
        self.stalled = ""
        """Why what waits can never start."""

    def carry(self, name: str, names: list[str]) -> None:
        """The Tune trial `name` carries these units."""
        self._carried[name] = names

    def seconds(self, cell: str) -> float | None:
        """How long a trial of a cell takes, so far as one knows."""
        known = self._seconds.get(cell)
        return sum(known) / len(known) if known else None

    def start(self, name: str) -> None:
        """A Tune trial has a worker."""
        self._started.update(self._carried[name])

    def report(self, result: dict[str, Any]) -> None:
        """A worker tells where it is."""
        for hash, (ended, seconds) in result["ended"].items():
            if hash not in self.outcome.ended:
                self.outcome.ended[hash] = ended
                self._seconds.setdefault(self._cells[hash], []).append(seconds)
                self.listener.ended(hash, ended)
        for running in result["running"]:
            if running not in self._begun:
                self._begun.add(running)
                self.listener.started(running)
            self.listener.moved(running, result["at"])

    def take_back(self, name: str) -> None:
        """Tune will take a trial up again: until then nothing of it runs."""
        hashes = {trial.hash for carried in self._carried[name] for trial in self.units[carried].trials}
        for hash in sorted(hashes & self._begun - self.outcome.ended.keys()):
            self._begun.discard(hash)
            self.listener.lost(hash)

    def give_up(self, name: str) -> None:
        """Tune has taken a trial up again as often as it may."""
        for carried in set(self._carried[name]) - self.settled():
            self._given_up.add(carried)
            self.outcome.lost.append(self.units[carried])

    def look(self, running: Callable[[], bool]) -> None:
        """Notices whether what waits can never start, while no Tune trial has a worker."""
        self.stalled = self.stalled or self._stall.look(running)

    def _waiting(self) -> dict[str, Resources]:
        settled = self.settled()
        return {unit.cell: unit.resources for name, unit in self.units.items() if name not in settled}

    def settled(self) -> set[str]:
        """Units of which nothing is left to do."""
        done = {name for name, unit in self.units.items() if all(self._over(trial.hash) for trial in unit.trials)}
        return done | self._given_up

    def _over(self, hash: str) -> bool:
        return self.outcome.ended.get(hash, "interrupted") != "interrupted"

    def idle(self) -> bool:
        """Whether no unit has had a worker or was settled: the end of this Tuner is then no unit's doing."""
        return not (self._started or self.settled())

    def running(self) -> set[str]:
        """Units that have a worker and are not settled."""
        return self._started - self.settled()


def _fit(units: Sequence[Unit], settings: dict[str, Any], watch: Watch, attempt: int, scheduler: Any) -> bool:
    """One Tuner over units. Returns whether it ended unexpectedly: a memory kill by Ray ends `fit` with an exception.

    Raises:
        OSError: if the results folder has no room: Tune may have ended of that before a trial could tell.
    """
    from ray import tune
    from ray.air._internal import usage
    from ray.tune.error import TuneError

    from harness.running.search import Hear, ListSearch, StopInVain
    from harness.running.worker import Worker

    table = {unit.name: unit.to_json() for unit in units}
    storage = Path(tempfile.mkdtemp(prefix="tune-", dir=settings["results"]))
    usage.tag_callbacks = lambda callbacks: False  # for statistics that are off (`SETTINGS`), it imports all of MLflow
    try:
        (storage / "room").write_bytes(bytes(ROOM))
        tune.Tuner(
            tune.with_parameters(Worker, table=table, settings=settings),
            tune_config=tune.TuneConfig(
                search_alg=ListSearch(units, watch, settings["slots"], attempt),
                scheduler=scheduler,
                reuse_actors=True,
                metric=None,
                mode=None,
            ),
            run_config=tune.RunConfig(
                name=f"tuner-{int(time.time())}-{attempt}",
                storage_path=str(storage),
                verbose=0,
                callbacks=[Hear(watch)],
                stop=StopInVain(watch),
            ),
        ).fit()
    except (RuntimeError, TuneError) as error:
        first = str(error).strip().split("\n")[0]
        logging.getLogger(__name__).warning("Ray Tune ended early, what was running is tried again: %s", first)
        return True
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    return False
