"""The first quarter of an hour of somebody new, step by step and timed: the README in a fresh clone, with a home of its own.

    python benchmarks/first_run.py            # about ten minutes; prints a table in Markdown

Clone, `make demo`, the report, MLflow (its pages' own queries, over HTTP), the README's method and grid as files, its check, and
the verdict on it. Nobody's reading is timed. Packages come from wherever pip is configured to find them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = re.compile(r"PATH|LANG|HARNESS_DATA|(PIP|UV|SSL|REQUESTS|CURL)_.*|.*_proxy|.*_PROXY")
"""What of the environment a newcomer's shell has too."""


def environment(home: Path) -> dict[str, str]:
    """A shell's environment without anything that this one has set up."""
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if ".venv" not in part)
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    return kept | {"HOME": str(home), "PATH": path, "TERM": "dumb"}


class Newcomer:
    """A clone, and commands that are run in it one after the other."""

    def __init__(self, folder: Path) -> None:
        self.project, home = folder / "project", folder / "home"
        home.mkdir()
        self.environment = environment(home)

    def run(self, command: str) -> str:
        """What a command prints.

        Raises:
            SystemExit: with the end of its output, if it fails.
        """
        place = self.project if self.project.exists() else self.project.parent
        shell = ["bash", "-c", f"test ! -d .venv || source .venv/bin/activate; {command}"]
        done = subprocess.run(shell, cwd=place, env=self.environment, text=True, capture_output=True)
        if done.returncode:
            raise SystemExit(f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return done.stdout

    def write(self, blocks: dict[str, str]) -> str:
        """Saves the README's blocks as files: names to languages."""
        readme = (self.project / "README.md").read_text()
        for name, language in blocks.items():
            (text,) = re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)
            (self.project / name).write_text(text)
        return ", ".join(blocks)

    def browse(self) -> str:
        """Opens MLflow and asks for what its first pages show: experiments, and the runs of the newest."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [str(self.project / ".venv/bin/harness"), "ui", "--port", str(port)]
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, cwd=self.project, env=self.environment, stdout=quiet, stderr=quiet)
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: "<title>" in read(address))
            found = json.loads(read(f"{address}/api/2.0/mlflow/experiments/search", {"max_results": 10}))["experiments"]
            (experiment,) = (one for one in found if one["name"] != "Default")
            asked = {"experiment_ids": [experiment["experiment_id"]], "max_results": 1000}
            runs = json.loads(read(f"{address}/api/2.0/mlflow/runs/search", asked))["runs"]
            return f"{len(runs)} runs of {experiment['name']}"
        finally:
            server.terminate()
            server.wait()


def read(address: str, body: dict[str, object] | None = None) -> str:
    """The text at an address; a request with a body is a POST."""
    content = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def until(there: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for a server that is starting."""
    last = time.monotonic() + seconds
    while True:
        try:
            if there():
                return
        except OSError as error:
            if time.monotonic() > last:
                raise SystemExit(f"MLflow has not answered for {seconds:g} s: {error}") from error
        time.sleep(0.2)


def verdict(newcomer: Newcomer) -> str:
    """The row of the report that answers the README's claim."""
    newcomer.run(f"harness report grid.yaml {PLUGIN} --format markdown --out report.md")
    lines = (newcomer.project / "report.md").read_text().splitlines()
    return (
        next(line for line in lines if re.search("supported|contradicted|undecided", line))
        .strip("| ")
        .replace("|", ";")
    )


PLUGIN = "--plugin centralize.py"
STEPS: dict[str, Callable[[Newcomer], str]] = {
    "git clone": lambda newcomer: newcomer.run(f"git clone -q {ROOT} project"),
    "make demo": lambda newcomer: newcomer.run("make demo"),
    "harness report grids/quickstart.yaml": lambda newcomer: newcomer.run("harness report grids/quickstart.yaml"),
    "harness ui": Newcomer.browse,
    "centralize.py and grid.yaml, from the README": lambda newcomer: newcomer.write(
        {"centralize.py": "python", "grid.yaml": "yaml"}
    ),
    f"harness describe gradient_centralization --check {PLUGIN}": lambda newcomer: newcomer.run(
        f"harness describe gradient_centralization --check {PLUGIN}"
    ),
    f"harness run grid.yaml {PLUGIN}": lambda newcomer: newcomer.run(f"harness run grid.yaml {PLUGIN}"),
    f"harness report grid.yaml {PLUGIN}": verdict,
}


def main() -> None:
    """Runs all steps and prints the table."""
    print("| step | seconds | so far | it ends with |\n|---|---:|---:|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        newcomer, begun = Newcomer(Path(folder)), time.monotonic()
        for name, do in STEPS.items():
            since = time.monotonic()
            told = do(newcomer).strip().splitlines()
            now = time.monotonic()
            print(
                f"| `{name}` | {now - since:.0f} | {now - begun:.0f} | {told[-1].strip() if told else ''} |", flush=True
            )


if __name__ == "__main__":
    main()
