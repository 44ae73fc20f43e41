"""The child of a warm process: one trial, or the seeds of a stack, in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import mmap
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from harness.recording.attempts import Attempt
from harness.recording.following import Following
from harness.recording.log import OUTPUT
from harness.recording.records import Locked, Over, RecordsError, storage
from harness.resources import Seat
from harness.running.units import UnitTrial

if TYPE_CHECKING:
    from harness.registry import Registry
    from harness.training.trial import Course

FOLLOWED = "followed"
"""How a rank beside the first ends where all went well."""

ENDINGS = ("", "interrupted", "locked", "unwritable", "alone", FOLLOWED)
"""How a child may rightly end without a result. It says so in shared memory: an author's code may choose any exit code."""


TOLD = 1024
"""Where in shared memory, beyond all endings, it is said why records cannot be read or written."""


class Child:
    """What a child does from the fork to its end.

    Args:
        results: the results folder.
        registry: what is registered, imported before the fork.
        commit_every: seconds between commits.
        shared: the step in 8 bytes, for each trial the index of its ending, and why records were of no use.
        seat: this process's place among the ranks of a trial that has several. All but the first follow that one: they
            write nothing, and they end when it does.
    """

    def __init__(
        self, results: Path, registry: Registry, commit_every: float, shared: mmap.mmap, seat: Seat | None
    ) -> None:
        self.results, self.registry, self.commit_every = results, registry, commit_every
        self.shared, self.seat = shared, seat
        self.follows = seat is not None and seat.index > 0

    def live(self, orders: Sequence[UnitTrial], gpu_share: float) -> NoReturn:
        """Runs trials and ends the process.

        Args:
            orders: the trials.
            gpu_share: the part of a GPU's memory that this process may take, where others have the rest.
        """
        code = 70
        try:
            os.setsid()
            _die_with_parent()
            if 0 < gpu_share < 1:
                _take_share(gpu_share)
            self._trials(orders, (lambda: False) if self.follows else _catch_stop())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _trials(self, orders: Sequence[UnitTrial], halted: Callable[[], bool]) -> None:
        from harness.training.loop import Interrupted
        from harness.training.ranks import PeerLost

        def halt(step: int) -> bool:
            self.shared[:8] = step.to_bytes(8, "little")
            return halted()

        with contextlib.ExitStack() as held:
            entered: list[tuple[UnitTrial, Attempt]] = []
            for number, order in enumerate(orders):
                try:
                    entered.append((order, held.enter_context(self._attempt(order))))
                except Over as end:
                    print(end, file=sys.stderr)
                except RecordsError as error:
                    self._trouble(number, error)
            if not entered:
                return
            name = f"rank-{self.seat.index}.txt" if self.seat and self.follows else OUTPUT
            try:
                _log_to([attempt.folder / name for _, attempt in entered])
                self._tell_warnings([attempt for _, attempt in entered])
                trouble = self._run(entered, halt)
            except RecordsError as error:
                trouble = {order.hash: error for order, _ in entered}
            except (Interrupted, PeerLost) as end:
                print(end, file=sys.stderr)
                for attempt in (attempt for _, attempt in entered if attempt.trial.result() is None):
                    attempt.tell("interrupted", "warning", step=self._step(), reason=str(end))
                for number in range(len(orders)):
                    ending = "alone" if isinstance(end, PeerLost) else "interrupted"
                    self.shared[8 + number] = self.shared[8 + number] or ENDINGS.index(ending)
                return
            if self.follows:
                self.shared[8] = ENDINGS.index(FOLLOWED)
            for number, order in enumerate(orders):
                if order.hash in trouble:
                    self._trouble(number, trouble[order.hash])

    def _step(self) -> int:
        return int.from_bytes(self.shared[:8], "little")

    def _tell_warnings(self, attempts: Sequence[Attempt]) -> None:
        """Warnings are printed as ever, and are events of the trials."""
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            shown(message, category, filename, lineno, file, line)
            for attempt in attempts:
                text = f"{category.__name__}: {message} ({Path(filename).name}:{lineno})"
                attempt.tell("warning", "warning", step=self._step(), message=text)

        warnings.showwarning = show

    def _attempt(self, order: UnitTrial) -> Attempt:
        kind = Following if self.follows else Attempt
        return kind(self.results, order.hash, order.spec_json, order.code, values=order.values, since=order.since)

    def _run(
        self, entered: Sequence[tuple[UnitTrial, Attempt]], halt: Callable[[int], bool]
    ) -> dict[str, RecordsError]:
        """Runs a trial, or a stack; returns those whose records could not be written."""
        from harness.identity import TrialSpec
        from harness.method import Ranks
        from harness.screening import Screen
        from harness.training.ranks import join
        from harness.training.together import run_stack
        from harness.training.trial import Course, run_alone

        ranks = join(self.seat) if self.seat else Ranks()
        courses = [
            Course(
                TrialSpec.from_json(order.spec_json),
                attempt,
                order.values,
                order.keep,
                Screen.from_json(order.screen) if order.screen and not self.follows else None,
                ranks,
            )
            for order, attempt in entered
        ]
        if courses[0].spec.stacked:  # a seed learns at its next evaluation that a rule stops it
            return run_stack(courses, self.registry, commit_every=self.commit_every, halt=halt)
        judged = _judged(courses[0])
        every = math.inf if self.follows else self.commit_every
        try:
            run_alone(courses[0], self.registry, commit_every=every, halt=lambda step: judged() or halt(step))
        except RecordsError as error:
            return {courses[0].spec.hash: error}
        return {}

    def _trouble(self, number: int, error: RecordsError) -> None:
        print(error, file=sys.stderr)
        room = len(self.shared) - TOLD
        self.shared[TOLD:] = str(error).encode()[:room].ljust(room, b"\0")
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


CONTEXT = 896 << 20
"""Bytes that CUDA itself takes of a GPU for each process, which PyTorch's limit does not count: up to 870 MiB on an H200."""


def _take_share(share: float) -> None:
    """Ends an allocation beyond the share as out of memory, in this process alone and not in its neighbours."""
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.0, share - CONTEXT / total))


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
    """What the trials print goes to the folder of the first one's attempt; the others say so.

    Raises:
        RecordsError: if it cannot be written there.
    """
    with storage(paths[0]):
        descriptor = os.open(paths[0], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):  # a line is there at once, also where the process is killed
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    for path in paths[1:]:
        with storage(path):
            path.write_text(f"This seed ran in a stack, and what that printed is in {paths[0]}\n", encoding="utf-8")
