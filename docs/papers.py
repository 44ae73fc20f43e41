"""Writes docs/papers.md: for each proxy grid every claim, its verdict and its numbers, as the results folder has them.

    python docs/papers.py [RESULTS]          # `make papers` runs the grids first

Only what has run is judged; a grid without results says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.judging.telling import difference
from harness.judging.verdicts import Verdict, judge_folder
from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import Plan, build_plan
from harness.recording.records import Result, Results
from harness.registry import Registry

ROOT = Path(__file__).parents[1]
PAPERS = {
    "lambda_gelu": "λ-GELU (arXiv 2603.21991)",
    "oui_screening": "OUI in PPO (arXiv 2603.09950)",
    "two_timescales": "Two time scales (arXiv 2602.08333)",
    "balanced_adam": "Balanced Adam (arXiv 2601.21739)",
    "stable_grad": "StableGrad (arXiv 2605.19856)",
    "fed_oui": "FedOUI (arXiv 2605.11571)",
    "fed_oui_readings": "FedOUI, other readings",
    "fed_oui_noisy": "FedOUI, noisy clients",
    "oui_observable": "OUI as an observable (arXiv 2605.11570)",
    "oui_decay": "OUIDecay (arXiv 2605.10161)",
    "refresh": "The refresh rule (arXiv 2605.10119)",
    "fed_sq": "FedSQ (arXiv 2604.02990)",
}
"""By name of the proxy grid, in the order of the papers."""


def kind(verdict: Verdict) -> str:
    """What a claim is in its grid, and whether a control came out as planted."""
    text = str(verdict.fields)
    if "handicap" in text:
        return "positive control" + ("" if verdict.outcome == "supported" or verdict.held else " FAILED")
    if "placebo" in text:
        return "null control" + ("" if verdict.outcome == "undecided" else " FAILED")
    return "claim"


def rows(found: list[Verdict]) -> list[str]:
    """The verdicts as the rows of a table."""
    cells = (
        [kind(v), v.sentence, str(v.outcome), "<br>".join(f"{p.label}: {difference(p)}" for p in v.parts), v.reason]
        for v in found
    )
    return ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in cells]


def section(name: str, title: str, memory: Results, registry: Registry) -> list[str]:
    """What the page says of one grid."""
    file = ROOT / "grids" / "proxies" / f"{name}.yaml"
    lines = [f"## {title}", "", f"    harness run {file.relative_to(ROOT)}", ""]
    try:
        plan = build_plan(load_grid(file, [], registry), registry)
    except GridError as error:
        return [*lines, f"Not planned here: {str(error).replace(str(ROOT) + '/', '')}", ""]
    results = memory.results(trial.hash for trial in plan.trials)
    if not results:
        return [*lines, "Not run yet.", ""]
    found = judge_folder(plan, memory, registry)
    table = ["| | statement | verdict | difference [interval] | because |", "|---|---|---|---|---|", *rows(found)]
    return [*lines, told(plan, results), "", *(table if found else ["No claims."]), ""]


def told(plan: Plan, results: dict[str, Result]) -> str:
    """How much of a grid has run, in what time, with which code."""
    seconds = sum(result.ended - result.started for result in results.values())
    codes = {trial.hash: trial.code for trial in plan.trials}
    stale = sum(result.code != codes[hash] for hash, result in results.items())
    other = f", {stale} of them by other code than this" if stale else ""
    return (
        f"{len(results)} of {len(plan.trials)} trials have ended{other}; {seconds / 60:.0f} minutes of trials together."
    )


def commit() -> str:
    """The commit of the code that judges, and whether it was changed since."""
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def page(results: Path) -> str:
    """The whole page, in Markdown."""
    registry, memory = Registry(), Results(results)
    intro = [
        "# Ten papers",
        "",
        "Each paper's abstract as claims of a grid on real data and small networks (`grids/proxies/`, minutes on two cores).",
        "The comments of each grid say which statement a claim stands for, what no grid can decide and why, and what was",
        "tuned. `grids/papers/` has the same questions at the papers' own scale. A verdict on a proxy is about the proxy.",
        "",
        f"Made by `make papers` at commit {commit()}.",
        "",
        "A grid's claims are worth as much as its controls: a null control (the same method under another name) must be",
        "undecided, a positive control (a planted difference) supported.",
        "",
    ]
    parts = [section(name, title, memory, registry) for name, title in PAPERS.items()]
    return "\n".join([*intro, *(line for part in parts for line in part)])


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("HARNESS_RESULTS", "results"))
    (ROOT / "docs" / "papers.md").write_text(page(folder), encoding="utf-8")
