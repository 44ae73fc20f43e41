"""Pictures of a grid as a reader sees it: MLflow's pages and the report, on a phone and a desktop, light and dark.

    python docs/screenshots.py                                  # grids/quickstart.yaml, run in ./results if it was not
    python docs/screenshots.py --results FOLDER --grid NAME     # a grid that was run there

Writes WebP files into `pictures/`. docs/browser.py says which browsers will do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import Browser

ROOT = Path(__file__).parent.parent
WIDTHS = {"phone": 390, "desktop": 1280}
WINDOW = (1440, 900)
STATE = 'MLflowLocalStorage-1.1-ExperimentPage-["{}"]-ReactComponentState'
"""Where MLflow's pages keep how a reader has set up an experiment: columns, grouping."""
TABLE = "document.querySelectorAll('[role=row]').length > 2"
TRAINING = "[...document.querySelectorAll('*')].find(e => !e.children.length && e.textContent == 'Model training')"
EXPAND = "document.querySelector('[role=row] [data-component-id*=runnamecellrenderer]')"
CHARTS = "document.querySelectorAll('.js-plotly-plot .main-svg').length > 3"
BY_CELL = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "cell"}]}


def harness(*arguments: object) -> None:
    """Runs a command of the harness."""
    subprocess.run([sys.executable, "-m", "harness.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def prepared(grid: str, results: Path) -> str:
    """The name of a grid of which there are results, MLflow runs and a report: it is run first if it is a file."""
    if Path(grid).is_file():
        harness("run", grid, "--results", results)
        (grid,) = re.findall(r"(?m)^name: *(\S+)", Path(grid).read_text())
    harness("report", grid, "--results", results)
    harness("sync", grid, "--results", results)
    return grid


@contextmanager
def shown(results: Path, seconds: float = 300.0) -> Iterator[str]:
    """The address of `harness ui`, on a port of its own.

    Raises:
        TimeoutError: if it does not answer in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "harness.cli", "ui", "--results", results, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError(f"harness ui: nothing at {address}") from error
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def asked(address: str, what: str, **content: Any) -> dict[str, Any]:
    """What MLflow's server answers."""
    body, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/{what}/search", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


def tagged(run: dict[str, Any]) -> dict[str, str]:
    """The tags of a run."""
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


def arrange(browser: Browser, experiment: str, **state: Any) -> None:
    """Sets an experiment's page up as a reader would by clicking; it is to be opened again."""
    key = json.dumps(STATE.format(experiment))
    setting = f"localStorage.setItem({key}, JSON.stringify({{...JSON.parse(localStorage.getItem({key})), ...{json.dumps(state)}}}))"
    browser.value(setting)
    browser.value("localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')")
    browser.open("about:blank")


def mlflow_pages(browser: Browser, address: str, grid: str, out: Path) -> Iterator[Path]:
    """The experiment, its runs grouped by cell, charts of one task, and the pages of the parent and of a trial."""

    def kept(name: str) -> Path:
        browser.shoot(out / f"{name}.webp")
        return out / f"{name}.webp"

    (experiment,) = (
        e["experiment_id"]
        for e in asked(address, "experiments", filter=f"name = '{grid}'", max_results=1)["experiments"]
    )
    runs = asked(address, "runs", experiment_ids=[experiment], max_results=1000)["runs"]
    (parent,) = (run for run in runs if "hash" not in tagged(run))
    trial = next(run for run in runs if tagged(run).get("status") == "finished" and "hash" in tagged(run))
    task, page = tagged(trial)["task"], f"{address}/#/experiments/{experiment}"
    scores = [f"metrics.`{m['key']}`" for m in trial["data"]["metrics"] if m["key"].startswith("test/")]
    columns = ["tags.`status`", *sorted(scores)[:2], "metrics.`time/train_seconds`"]

    browser.look(*WINDOW)
    browser.open(f"{page}/runs", "document.querySelector('[role=row]') != null")
    browser.click(TRAINING)
    arrange(browser, experiment, selectedColumns=columns)
    browser.open(f"{page}/runs", f"{EXPAND} != null")
    browser.click(EXPAND)
    browser.wait(TABLE)
    yield kept("experiment")
    arrange(browser, experiment, groupBy=BY_CELL)
    browser.open(f"{page}/runs", TABLE)
    yield kept("grouped")
    chosen = urllib.parse.quote(f'tags.task = "{task}"')
    browser.open("about:blank")
    browser.open(f"{page}/runs?compareRunsMode=CHART&searchFilter={chosen}", CHARTS)
    browser.click("document.querySelector('input[placeholder=\"Search metric charts\"]')")
    browser.ask("Input.insertText", text="^val/")
    browser.wait(CHARTS.replace("> 3", "> 0"))
    yield kept("charts")
    browser.open(f"{page}/runs/{parent['info']['run_id']}", "document.body.innerText.includes('trials:')")
    yield kept("parent")
    report = "document.querySelector('iframe') != null"
    browser.open(f"{page}/runs/{parent['info']['run_id']}/artifacts/report.html", report)
    yield kept("artifact")
    ready = f"document.body.innerText.includes({json.dumps(tagged(trial)['hash'])})"
    browser.open(f"{page}/runs/{trial['info']['run_id']}", ready)
    yield kept("trial")


def report_pages(browser: Browser, report: Path, out: Path, height: int) -> Iterator[Path]:
    """The report on a phone and a desktop, light and dark."""
    for device, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            browser.look(width, 800, dark=scheme == "dark")
            browser.open(report.resolve().as_uri())
            browser.shoot(out / f"report-{device}-{scheme}.webp", height)
            yield out / f"report-{device}-{scheme}.webp"


def pictures(results: Path, grid: str, out: Path, height: int) -> Iterator[Path]:
    """All pictures of a grid that was run and reported."""
    out.mkdir(parents=True, exist_ok=True)
    with shown(results) as address, Browser() as browser:
        yield from report_pages(browser, results / "grids" / grid / "report.html", out, height)
        yield from mlflow_pages(browser, address, grid, out)


def main() -> None:
    """Takes the pictures of one grid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--grid", default=str(ROOT / "grids" / "quickstart.yaml"), help="a file, or a name in RESULTS")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--height", type=int, default=6000, help="where pictures of the report end, in pixels")
    given = parser.parse_args()
    for file in pictures(given.results, prepared(given.grid, given.results), given.out, given.height):
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
