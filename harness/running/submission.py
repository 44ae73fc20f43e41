"""`harness submit`: a grid from a laptop to a running cluster, as a Ray job that goes on when the laptop is closed."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.planning.plan import Plan
from harness.recording.store import TrackingError, scheme_of
from harness.running.nodes import differences, versions
from harness.running.scheduling import SETTINGS, Infrastructure
from harness.running.staging import NotStaged, Order, check_size, digest, plan_digest, stage
from harness.seconds import amount

STOP_SECONDS = 120
"""Seconds that a driver is given to end cleanly."""

JOB_SETTINGS = SETTINGS | {
    "PYTHONUNBUFFERED": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
}
"""All that a job gets of this machine's environment: nothing of it, but what the harness needs."""

PATIENCE = 60.0
"""Seconds that an answer of the head may take, and that a head which no longer answers is asked again."""

QUIET = 60.0
"""Seconds that a job may print nothing before one asks whether it still runs: a connection may be dead without a word."""

READY = 180.0
"""Seconds that a head which has just started is given to take jobs."""

TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class BadSubmission(ValueError):
    """Bad input: exit status 2, nothing sent."""


@dataclass(frozen=True)
class Target:
    """Where a grid goes.

    Args:
        address: of the cluster's dashboard: `http://head:8265`.
        results: a folder that head and workers share.
        tracking: an MLflow address that the head reaches.
        driver_label: `NAME=VALUE`, a label of the nodes that the driver may run on; the head unless given.
        options: further options of `harness run`.
    """

    address: str
    results: str
    tracking: str
    driver_label: str | None = None
    options: Sequence[str] = field(default=())

    def check(self) -> None:
        """Refuses what must not be sent, before anything is.

        Raises:
            BadSubmission: names the option.
        """
        check_address(self.address)
        check_token()
        if not Path(self.results).is_absolute():
            raise BadSubmission(f"--results: found {self.results}, allowed: an absolute path that all nodes share")
        for name, value in (("--tracking", self.tracking), ("--address", self.address)):
            if urlsplit(value).password or urlsplit(value).username:
                raise BadSubmission(
                    f"{name}: found an address with a user or password in it, allowed: one without; "
                    "MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the head"
                )
        try:
            scheme_of(self.tracking)
        except TrackingError as error:
            raise BadSubmission(str(error)) from error
        if self.driver_label and not re.fullmatch(r"[^=\s]+=[^=\s]+", self.driver_label):
            raise BadSubmission(f"--driver-label: found {self.driver_label!r}, allowed: NAME=VALUE")


def check_address(address: str) -> None:
    """Refuses to send a token in the clear over a public network.

    Raises:
        BadSubmission: if the address is no http address, or leads over plain http to a public host.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSubmission(f"--address: found {address!r}, allowed: http://HEAD:8265 or https://HEAD, the dashboard's")
    if parts.scheme == "https":
        return
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BadSubmission(f"--address: the host {parts.hostname} is unknown ({error})") from error
    public = [str(entry[4][0]) for entry in found if ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_global]
    if public:
        raise BadSubmission(
            f"--address: {parts.hostname} is the public address {public[0]}, and plain http would show the token to "
            "everyone on the way, allowed: https, or a tunnel: ssh -L 8265:localhost:8265 HEAD, then "
            "--address http://localhost:8265"
        )


def check_token() -> None:
    """Sets Ray to token mode.

    Raises:
        BadSubmission: if there is no token.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not os.environ.get("RAY_AUTH_TOKEN") and not file.is_file():
        raise BadSubmission(f"no token: set RAY_AUTH_TOKEN, or put the cluster's token into {file} (chmod 600)")


def connect(address: str) -> Any:
    """A client of the cluster's jobs.

    Raises:
        Infrastructure: if the cluster does not answer, or does not take the token.
        BadSubmission: if it runs another version of Ray.
    """
    check_address(address)
    check_token()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's, which would wait for ever for a head that hangs and raises what each of its libraries raises."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            try:
                return super()._do_request(method, endpoint, timeout=PATIENCE, **options)
            except OSError as error:  # the kinds of requests
                raise Infrastructure(f"the head no longer answers ({error})") from error

        def _raise_error(self, r: Any) -> None:
            raise Infrastructure(f"the head answers {r.status_code}: {r.text[:300]}")

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        client = Client(address)
        there = {"ray": str(client._server_ray_version)}  # `get_version` gives that of the interface
        client.list_jobs()
    except Exception as error:  # Ray and requests raise many kinds here, and each means that no job can be sent
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise Infrastructure(f"the cluster at {address} does not answer as it should ({told})") from error
    if told := "; ".join(differences(there, {"ray": versions()["ray"]})):
        raise BadSubmission(f"the cluster has another version: {told}")
    return client


def submit(client: Any, plan: Plan, plugins: Sequence[Path], target: Target, say: Callable[[str], None]) -> str:
    """Sends a grid, unless the same is running already. Returns the id of its job.

    Raises:
        BadSubmission: if something cannot be sent, or the same grid is running with other content.
        Infrastructure: if the cluster does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="harness-") as place:
        folder = Path(place)
        try:
            staged = stage(folder, plan.grid_text, plugins)
            size = check_size(folder)
        except NotStaged as error:
            raise BadSubmission(str(error)) from error
        order = Order(
            grid=plan.name,
            results=target.results,
            tracking=target.tracking,
            plugins=staged,
            options=list(target.options),
            plan=plan_digest(plan),
            versions=versions(),
        )
        order = dataclasses.replace(order, code=digest(folder))
        (folder / "order.json").write_text(order.to_json(), encoding="utf-8")
        live, attempt = _known(client, order)
        if live:
            say(f"{live} is running already; its output follows.")
            return live
        id = f"{order.grid}-{order.digest}-{attempt}"
        _send(client, id, folder, order, target.driver_label)
    say(f"{id}: {amount(len(plan.trials), 'trial')}, a package of {size / 2**20:.1f} MiB")
    return id


def _send(client: Any, id: str, folder: Path, order: Order, driver_label: str | None) -> None:
    selector = dict([driver_label.split("=")]) if driver_label else None
    deadline = time.monotonic() + READY
    while True:
        try:
            client.submit_job(
                entrypoint="python -m harness.running.arrival",
                submission_id=id,
                runtime_env={"working_dir": str(folder), "env_vars": JOB_SETTINGS},
                metadata={"grid": order.grid, "order": order.digest, "results": order.results},
                entrypoint_label_selector=selector,
            )
            return
        except Exception as error:  # Ray raises RuntimeError for every answer that is no success
            told = " ".join(str(error).split())[:300]
            if "try again later" not in told or time.monotonic() > deadline:  # a head that has just started says so
                raise Infrastructure(f"the cluster does not take the job ({told})") from error
        time.sleep(2.0)


def _known(client: Any, order: Order) -> tuple[str | None, int]:
    """The live job of this order, if there is one, and the number of the next attempt: Ray takes an id only once.

    Raises:
        BadSubmission: if the grid is running with other content on the same results folder.
    """
    attempts = [0]
    for job in jobs(client, order.grid):
        same = job.metadata.get("order") == order.digest
        if same:
            attempts.append(int(job.submission_id.rpartition("-")[2]))
        if job.status.value in TERMINAL:
            continue
        if same:
            return job.submission_id, 0
        if job.metadata.get("results") == order.results:
            raise BadSubmission(
                f"grid {order.grid} is running there with other content or code ({job.submission_id}); "
                f"wait for it, or end it with: harness stop {order.grid} --address ADDRESS"
            )
    return None, max(attempts) + 1


def jobs(client: Any, grid: str) -> list[Any]:
    """The jobs of a grid that the cluster remembers."""
    found = [job for job in client.list_jobs() if (job.metadata or {}).get("grid") == grid and job.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0)


def follow(client: Any, id: str, write: Callable[[str], None]) -> int:
    """Shows a job's output until it ends, and returns its exit status.

    Raises:
        Infrastructure: if the head no longer answers.
    """
    from aiohttp import ClientError

    seen, silent, over = 0, time.monotonic(), False

    async def tail() -> bool:
        """Shows what is new; whether that is all there is."""
        nonlocal seen, silent
        at, texts = 0, client.tail_job_logs(id)  # always from the beginning
        while True:
            try:
                text = await asyncio.wait_for(anext(texts), QUIET)
            except StopAsyncIteration:
                return True
            except TimeoutError:
                return False
            silent = time.monotonic()
            if at + len(text) > seen:
                write(text[max(0, seen - at) :])
                seen = at + len(text)
            at += len(text)

    while True:
        try:
            whole = asyncio.run(tail())
            info = client.get_job_info(id)
            silent = time.monotonic()
        except (RuntimeError, OSError, ClientError) as error:  # requests raises kinds of OSError
            if time.monotonic() - silent > PATIENCE:
                raise Infrastructure(f"the head no longer answers ({error}); what was committed is kept") from error
            time.sleep(2.0)
            continue
        if info.status.value in TERMINAL and (whole or over):
            return exit_status(info)
        over = info.status.value in TERMINAL  # then what it printed last is still to be shown
        time.sleep(0.5)


def exit_status(info: Any) -> int:
    """What `harness run` ended with; 130 for a job that was stopped, 3 for one that ended otherwise."""
    if info.status.value == "STOPPED":
        return 130
    if info.driver_exit_code is None:
        return 0 if info.status.value == "SUCCEEDED" else 3
    code = int(info.driver_exit_code)
    return code if 0 <= code < 128 else 3
