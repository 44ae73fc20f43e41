"""The warm process: it has imported torch and what is registered, and forks a child for each trial or stack of trials.

A worker starts one with `python -m harness.running.warm FD` and talks to it in lines of JSON over a socket. Nothing that a
trial does can reach the next one, since each has a process of its own that ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import mmap
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from harness.recording.records import (
    Attempt,
    Locked,
    RecordsError,
    Result,
    Status,
    TrialRecords,
    end_without_result,
)
from harness.running.units import APART, UnitTrial

if TYPE_CHECKING:
    from harness.training.trial import Course

ENDINGS = ("", "interrupted", "locked", "unwritable")
"""How a child may rightly end without a result. It says so in shared memory: an author's code may choose any exit code."""

OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""Signals that come from outside; others are the trial's own fault."""

GRACE = 10.0
"""Seconds between asking a child to stop and killing it."""


@dataclass(frozen=True)
class Limits:
    """What a child may take."""

    memory: int | None
    time: float | None


class Warm:
    """The warm process.

    Args:
        channel: the socket to the worker; when it closes, the child is stopped and the process ends.
        settings: `results`, `plugins` and `commit_every`.
    """

    def __init__(self, channel: socket.socket, settings: dict[str, Any]) -> None:
        self.channel = channel
        self.buffer = b""
        self.results = Path(settings["results"])
        self.commit_every = float(settings["commit_every"])
        self.plugins = settings["plugins"]
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)  # the step in 8 bytes, and for each trial the index of its ending
        self.stopping: float | None = None

    def serve(self) -> None:
        """Runs orders until the worker goes away."""
        from harness.registry import Registry

        self.registry = Registry(self.plugins)
        _warm_up(self.registry)
        self.say(event="ready")
        while (message := self.hear()) is not None:
            if message["op"] == "run":
                self.run([UnitTrial(**order) for order in message["orders"]], Limits(**message["limits"]))
                if self.stopping is not None:
                    return

    def hear(self) -> dict[str, Any] | None:
        """The worker's next message; None once it is gone."""
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

    def run(self, orders: Sequence[UnitTrial], limits: Limits) -> None:
        """Forks a child for a trial, or for the seeds of a stack, watches it to its end, and tells how each trial ended."""
        started = time.time()
        self.shared[:] = bytes(len(self.shared))
        pid = os.fork()
        if pid == 0:
            self.child(orders)
        cause = self.watch(pid, orders[0], limits)
        _, waited = os.waitpid(pid, 0)
        for number, order in enumerate(orders):
            status, reason = _ending(waited, cause, ENDINGS[self.shared[8 + number]])
            if status in (Status.FAILED, Status.OUT_OF_MEMORY) and len(orders) > 1 and not self._ended(order, started):
                self.say(event="ended", hash=order.hash, status=APART, reason=reason)
                continue
            if status is not None:
                result = Result(order.hash, status, order.code, started=started, ended=time.time(), reason=reason)
                try:
                    ended = end_without_result(self.results, result, order.spec_json)
                    status, reason = ended.status, ended.reason
                except RecordsError as error:
                    status, reason = None, f"unwritable: {error}"
            self.say(event="ended", hash=order.hash, status=status, reason=reason)

    def _ended(self, order: UnitTrial, since: float) -> bool:
        """Whether the child has left the result of a trial."""
        result = TrialRecords(self.results, order.hash).result()
        return result is not None and result.ended >= since

    def watch(self, pid: int, order: UnitTrial, limits: Limits) -> str | None:
        """Waits for the child; returns why it was ended, if it was."""
        process = psutil.Process(pid)
        pidfd = os.pidfd_open(pid)
        deadline = time.monotonic() + (limits.time or math.inf)
        told, descendants = time.monotonic(), 0
        cause: str | None = None
        while True:
            heard = [] if self.stopping is not None else [self.channel.fileno()]
            readable, _, _ = select.select([pidfd, *heard], [], [], 0.05)
            if pidfd in readable:
                os.close(pidfd)
                return cause
            now = time.monotonic()
            if heard and heard[0] in readable and ((message := self.hear()) is None or message["op"] == "stop"):
                self.stopping = now
                _kill(pid, signal.SIGTERM)
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

    def child(self, orders: Sequence[UnitTrial]) -> NoReturn:
        """The child: one trial, or one stack, in a process of its own."""
        code = 70
        try:
            os.setsid()
            _die_with_parent()
            self.channel.close()
            halted = _catch_stop()
            code = self._trials(orders, halted)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _trials(self, orders: Sequence[UnitTrial], halted: Callable[[], bool]) -> int:
        from harness.training.loop import Interrupted

        def halt(step: int) -> bool:
            self.shared[:8] = step.to_bytes(8, "little")
            return halted()

        with contextlib.ExitStack() as held:
            entered: list[tuple[UnitTrial, Attempt]] = []
            for number, order in enumerate(orders):
                try:
                    attempt = Attempt(self.results, order.hash, order.spec_json, order.code)
                    entered.append((order, held.enter_context(attempt)))
                except RecordsError as error:
                    self._trouble(number, error)
            if not entered:
                return 0
            _log_to([attempt.folder / "log.txt" for _, attempt in entered])
            try:
                trouble = self._run(entered, halt)
            except Interrupted:
                for number in range(len(orders)):
                    self.shared[8 + number] = self.shared[8 + number] or ENDINGS.index("interrupted")
                return 0
            for number, order in enumerate(orders):
                if order.hash in trouble:
                    self._trouble(number, trouble[order.hash])
        return 0

    def _run(
        self, entered: Sequence[tuple[UnitTrial, Attempt]], halt: Callable[[int], bool]
    ) -> Mapping[str, RecordsError]:
        """Runs a trial, or a stack; returns those whose records could not be written."""
        from harness.identity import TrialSpec
        from harness.screening import Screen
        from harness.training.together import run_stack
        from harness.training.trial import Course, run_alone

        courses = [
            Course(
                TrialSpec.from_json(order.spec_json),
                attempt,
                order.values,
                order.keep,
                Screen.from_json(order.screen) if order.screen else None,
            )
            for order, attempt in entered
        ]
        if courses[0].spec.stacked:  # a seed learns at its next evaluation that a rule stops it
            return run_stack(courses, self.registry, commit_every=self.commit_every, halt=halt)
        judged = _judged(courses[0])
        try:
            run_alone(
                courses[0], self.registry, commit_every=self.commit_every, halt=lambda step: judged() or halt(step)
            )
        except RecordsError as error:
            return {courses[0].spec.hash: error}
        return {}

    def _trouble(self, number: int, error: RecordsError) -> None:
        print(error, file=sys.stderr)
        self.shared[8 + number] = ENDINGS.index("locked" if isinstance(error, Locked) else "unwritable")


def _judged(course: Course) -> Callable[[], bool]:
    """Tells, looking twice a second, whether a rule that compares trials has stopped this one."""
    screen, looked = course.screen, time.monotonic()

    def judged() -> bool:
        nonlocal looked
        if screen is None or not screen.compares or time.monotonic() - looked < 0.5:
            return False
        looked = time.monotonic()
        return bool(course.attempt.trial.verdict(screen.mark, course.attempt.code))

    return judged


def _warm_up(registry: Any) -> None:
    """Imports once what every trial needs. The first optimizer of a process imports much of torch."""
    import torch

    from harness.recording.environment import environment

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    environment()
    registry.preload()
    gc.collect()
    gc.freeze()  # what is there now is never collected: a collection in a child would copy the pages it touches


def _ending(waited: int, cause: str | None, ending: str) -> tuple[Status | None, str]:
    """The status of a child that may have left no result; None if there is nothing to write."""
    if cause == "time":
        return Status.TIMED_OUT, "ran past its time limit"
    if cause == "memory":
        return Status.OUT_OF_MEMORY, "took more than its memory limit"
    if cause == "stopped" or ending:
        return None, ending or "interrupted"
    if os.WIFSIGNALED(waited):
        number = signal.Signals(os.WTERMSIG(waited))
        status = Status.LOST if number in OUTSIDE else Status.FAILED
        return status, f"its process was ended by {number.name}"
    code = os.WEXITSTATUS(waited)
    return Status.FAILED, f"its process ended itself with exit code {code} and left no result"


def _kill(pid: int, number: signal.Signals) -> None:
    """Signals the child, and with SIGKILL whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


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


def _die_with_parent() -> None:
    """Asks the kernel to kill this process when the warm process dies."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _catch_stop() -> Callable[[], bool]:
    """SIGTERM asks for a stop at the next step; an interrupt at the driver's terminal is the driver's business."""
    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return lambda: asked


def _log_to(paths: Sequence[Path]) -> None:
    """What the trials print goes to the folder of the first one's attempt; the others say so."""
    descriptor = os.open(paths[0], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for path in paths[1:]:
        path.write_text(f"This seed ran in a stack, and what that printed is in {paths[0]}\n", encoding="utf-8")


def main() -> None:
    """Serves the worker at the other end of the socket whose descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        Warm(channel, json.loads(sys.argv[2])).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to clean up, and libraries complain about objects that a frozen collector kept


if __name__ == "__main__":
    main()
