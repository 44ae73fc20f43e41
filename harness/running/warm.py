"""The warm process of a worker: all is imported in it, and it forks a child for each trial or stack of trials.

It comes from its node's fork server, and the worker talks to it in lines of JSON over a socket. Nothing that a trial does can
reach the next one, since each has a process of its own that ends with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.recording.attempts import end_without_result
from harness.recording.records import Locked, RecordsError, Result, Status, TrialRecords
from harness.resources import Seat
from harness.running.child import ENDINGS, TOLD, Child
from harness.running.units import APART, UnitTrial

if TYPE_CHECKING:
    from harness.registry import Registry

OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""Signals that come from outside; others are the trial's own fault."""

GRACE = 10.0
"""Seconds between asking a child to stop and killing it."""


@dataclass(frozen=True)
class Limits:
    """What a child may take."""

    memory: int | None
    time: float | None
    gpu_share: float
    """Of one GPU, where a trial does not have it alone; 0 without a GPU."""


class Warm:
    """The warm process.

    Args:
        channel: the socket to the worker. Where that says `stop`, the child is asked to commit and stop; where it goes away, the
            child is killed. Then this process ends.
        settings: `results` and `commit_every`.
        registry: what is registered, imported.
    """

    def __init__(self, channel: socket.socket, settings: dict[str, Any], registry: Registry) -> None:
        self.channel = channel
        self.buffer = b""
        self.results = Path(settings["results"])
        self.commit_every = float(settings["commit_every"])
        self.registry = registry
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)  # what is where: `Child`
        self.stopping: float | None = None

    def serve(self) -> None:
        """Runs orders until the worker goes away."""
        self.say(event="ready", pid=os.getpid())
        while (message := self.hear()) and "orders" in message:
            orders = [UnitTrial(**order) for order in message["orders"]]
            seat = Seat(**message["seat"]) if message["seat"] else None
            self.run(orders, Limits(**message["limits"]), seat)
            if self.stopping is not None:
                return

    def hear(self) -> dict[str, Any] | None:
        """The worker's next message, an order or `stop`; None once it is gone."""
        while b"\n" not in self.buffer:
            with contextlib.suppress(ConnectionResetError):
                if data := self.channel.recv(65536):
                    self.buffer += data
                    continue
            return None
        line, _, self.buffer = self.buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def say(self, **message: Any) -> None:
        """Tells the worker; a worker that is gone is noticed where its socket is read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.channel.sendall(json.dumps(message).encode() + b"\n")

    def run(self, orders: Sequence[UnitTrial], limits: Limits, seat: Seat | None) -> None:
        """Forks a child for a trial, or for the seeds of a stack, watches it to its end, and tells how each trial ended.

        Args:
            orders: the trials.
            limits: what the child may take.
            seat: the child's place among the ranks of a trial that has several.
        """
        started = time.time()
        self.shared[:] = bytes(len(self.shared))
        child = Child(self.results, self.registry, self.commit_every, self.shared, seat)
        pid = os.fork()
        if pid == 0:
            self.channel.close()
            child.live(orders, limits.gpu_share)
        cause = self.watch(pid, orders[0], limits)
        _, waited = os.waitpid(pid, 0)
        _end_group(pid)
        asked = self.stopping is not None or child.follows  # a rank that follows stops where the first one does
        for number, order in enumerate(orders):
            status, reason = _ending(waited, cause, ENDINGS[self.shared[8 + number]], asked)
            if reason == "unwritable":
                reason += f": {self.shared[TOLD:].rstrip(bytes(1)).decode(errors='replace')}"
            told: str | None = status
            if status in (Status.FAILED, Status.OUT_OF_MEMORY) and len(orders) > 1 and not self._ended(order, started):
                told = APART
            elif status is not None and not child.follows:  # the first rank alone has records
                result = Result(order.hash, status, order.code, started=started, ended=time.time(), reason=reason)
                told, reason = self._leave(result, order, min(started, order.since))
            self.say(event="ended", hash=order.hash, status=told, reason=reason)

    def _leave(self, result: Result, order: UnitTrial, since: float) -> tuple[str | None, str]:
        """Leaves a result if none has been left since; what is told of the trial."""
        try:
            ended = end_without_result(self.results, result, order.spec_json, since)
        except Locked:  # another grid that names the trial, and that waited for it
            return None, "locked"
        except RecordsError as error:
            return None, f"unwritable: {error}"
        return ended.status, ended.reason

    def _ended(self, order: UnitTrial, since: float) -> bool:
        """Whether the child has left the result of a trial, or has found it there."""
        result = TrialRecords(self.results, order.hash).result()
        return result is not None and result.ended >= min(since, order.since)

    def watch(self, pid: int, order: UnitTrial, limits: Limits) -> str | None:
        """Waits for the child; returns why it was ended, if it was."""
        process = psutil.Process(pid)
        pidfds = [os.pidfd_open(pid)] if hasattr(os, "pidfd_open") else []  # Linux alone has them
        deadline = time.monotonic() + (limits.time or math.inf)
        told, descendants = time.monotonic(), 0
        cause: str | None = None
        while True:
            heard = [] if self.stopping is not None else [self.channel.fileno()]
            readable, _, _ = select.select([*pidfds, *heard], [], [], 0.05)
            spoken = bool(heard) and (
                heard[0] in readable or b"\n" in self.buffer
            )  # `stop` may have come with the order
            if any(fd in readable for fd in pidfds) or (not pidfds and process.status() == psutil.STATUS_ZOMBIE):
                for fd in pidfds:
                    os.close(fd)
                return cause
            now = time.monotonic()
            if spoken:
                self.stopping = now
                if self.hear() is None:  # Ray may have killed the worker for its memory: the child must not keep that
                    cause = "stopped"
                _kill(pid, signal.SIGKILL if cause else signal.SIGTERM)
            if cause is None:
                used = _memory([process]) + descendants
                cause = self._limit(now, deadline, used, limits.memory or math.inf)
                if cause is not None:
                    _kill(pid, signal.SIGKILL)
            if now - told > 0.5:
                told, descendants = now, _memory(_descendants(process))
                self.say(event="progress", hash=order.hash, step=int.from_bytes(self.shared[:8], "little"))

    def _limit(self, now: float, deadline: float, used: int, memory: float) -> str | None:
        """The limit that the child has passed."""
        if self.stopping is not None and now - self.stopping > GRACE:
            return "stopped"
        if now > deadline:
            return "time"
        return "memory" if used > memory else None


def _ending(waited: int, cause: str | None, ending: str, asked: bool) -> tuple[Status | None, str]:
    """The status of a child that may have left no result, asked to stop or not; None if there is nothing to write."""
    if cause == "time":
        return Status.TIMED_OUT, "ran past its time limit"
    if cause == "memory":
        return Status.OUT_OF_MEMORY, "took more than its memory limit"
    if ending == "alone":
        return Status.LOST, "another of its ranks was ended"
    if ending == "interrupted" and not asked:
        return Status.LOST, "its process was asked to end by SIGTERM"
    if cause == "stopped" or ending or (asked and os.WIFSIGNALED(waited) and os.WTERMSIG(waited) == signal.SIGTERM):
        return None, ending or "interrupted"  # the signal may come before the child listens to it
    if os.WIFSIGNALED(waited):
        number = signal.Signals(os.WTERMSIG(waited))
        status = Status.LOST if number in OUTSIDE else Status.FAILED
        return status, f"its process was ended by {number.name}"
    code = os.WEXITSTATUS(waited)
    return Status.FAILED, f"its process ended itself with exit code {code} and left no result"


def _kill(pid: int, number: signal.Signals) -> None:
    """Signals the child, and with SIGKILL whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM where only zombies are left
        if number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):  # it may not lead its group yet
                os.killpg(pid, number)
        os.kill(pid, number)


def _end_group(leader: int) -> None:
    """Kills what a child that has ended leaves behind of its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM where only zombies are left
        os.killpg(leader, signal.SIGKILL)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _memory(processes: list[psutil.Process]) -> int:
    """Resident bytes of processes; one that has ended takes none."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
