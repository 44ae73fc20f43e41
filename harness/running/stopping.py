"""`harness stop`: ends a grid cleanly, wherever its driver runs. Trials commit and go on from there in the next run."""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

import psutil

from harness.recording.grids import Submission, held, submissions
from harness.recording.results import Results
from harness.running.scheduling import Infrastructure
from harness.running.submission import STOP_SECONDS, TERMINAL, jobs

STARTING = 60.0
"""Seconds between a driver's lock and the note of its submission, at most: Ray starts in between."""


def stop_submitted(client: Any, grid: str) -> list[str]:
    """Ends the live jobs of a grid; returns their ids once they have ended.

    Raises:
        Infrastructure: if one does not end, or the head does not answer.
    """
    asked: list[str] = []
    deadline = time.monotonic() + STOP_SECONDS + 30
    while live := [job.submission_id for job in jobs(client, grid) if job.status.value not in TERMINAL]:
        if time.monotonic() > deadline:
            raise Infrastructure(f"{', '.join(live)}: does not end")
        for id in set(live).difference(asked):
            client.stop_job(id)
            asked.append(id)
        time.sleep(0.5)
    return asked


def stop_local(results: Results, grid: str) -> bool:
    """Ends the driver that runs a grid on this machine; returns whether there was one.

    Raises:
        Infrastructure: if it runs on another machine, or does not end.
    """
    folder = results.grid(grid)
    if grid not in results.grids():
        return False
    deadline = time.monotonic() + STARTING
    while held(folder):
        known = submissions(results, grid)
        if known and "ended" not in known[-1].about and (driver := _driver(known[-1])):
            driver.send_signal(signal.SIGINT)
            _wait(grid, driver)
            return True
        if time.monotonic() > deadline:
            raise Infrastructure(f"grid {grid}: some process holds {folder}, but no submission names it")
        time.sleep(0.2)
    return False


def _driver(submission: Submission) -> psutil.Process | None:
    """The process that a submission names, if it is still that one.

    Raises:
        Infrastructure: if it runs on another machine.
    """
    about = submission.about
    if about["host"] != socket.gethostname():
        raise Infrastructure(
            f"its driver runs on {about['host']}; run `harness stop` there, or give the cluster's --address"
        )
    try:
        process = psutil.Process(about["process"])
        ours = process.create_time() <= about["started"] + 1 and "harness" in " ".join(process.cmdline())
    except psutil.Error:
        return None
    return process if ours else None


def _wait(grid: str, driver: psutil.Process) -> None:
    """Until the process has ended, whether or not whoever started it has taken note."""
    deadline = time.monotonic() + STOP_SECONDS
    while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            raise Infrastructure(f"grid {grid}: process {driver.pid} does not end")
        time.sleep(0.1)
