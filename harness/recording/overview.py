"""What MLflow shall show of a grid as a whole: its parent run, with a note. Nothing here imports MLflow."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.recording.grids import Submission
from harness.recording.projection import RUNNING, Content, Summary, literal, milliseconds
from harness.recording.records import intact
from harness.recording.results import Results
from harness.seconds import amount


@dataclass(frozen=True)
class Report:
    """The report of a grid as it was last written."""

    page: str
    verdicts: list[dict[str, Any]]

    @property
    def digest(self) -> str:
        """Changes with the page."""
        return hashlib.sha256(self.page.encode()).hexdigest()[:16]


def read_report(results: Results, grid: str) -> Report | None:
    """The report of a grid, if one was written.

    Raises:
        RecordsError: if its verdicts are damaged.
    """
    folder = results.grid(grid)
    try:
        with intact(folder / "verdicts.json", f"write it again: harness report {grid}"):
            page = (folder / "report.html").read_text(encoding="utf-8")
            return Report(page, json.loads((folder / "verdicts.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def grid_content(
    grid: str,
    submissions: Sequence[Submission],
    seen: Mapping[str, Summary],
    running: bool,
    report: Report | None = None,
) -> Content:
    """The parent run of a grid: reopened by each submission, ended with the last of its trials."""
    newest = submissions[-1]
    planned = [trial.hash for trial in newest.trials()]
    counts = Counter(seen[hash].status if hash in seen else "not run" for hash in planned)
    complete = all(hash in seen and seen[hash].settled for hash in planned)
    status = RUNNING if running else "finished" if complete else "incomplete"
    ends = [summary.ended for summary in seen.values()]
    started = submissions[0].about["started"]
    return Content(
        name=grid,
        start=milliseconds(started),
        status={RUNNING: "RUNNING", "finished": "FINISHED", "incomplete": "KILLED"}[status],
        tags={
            "grid": grid,
            "status": status,
            "submissions": str(len(submissions)),
            "mlflow.note.content": note(grid, submissions, counts, report),
            "mlflow.user": newest.about["user"],
            "mlflow.source.name": f"harness run {grid}",
            "mlflow.source.type": "LOCAL",
        }
        | ({"report": report.digest} if report else {}),
        end=None if running else milliseconds(max([started, *ends])),
    )


def note(grid: str, submissions: Sequence[Submission], counts: Mapping[str, int], report: Report | None = None) -> str:
    """What the parent run says of its grid, in Markdown."""
    newest = submissions[-1]
    environment = newest.read("environment.json")
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    lines = [f"**{grid}**: {amount(sum(counts.values()), 'trial')}: {told}.", ""]
    if report:
        lines += ["The report is among the artifacts: `report.html`.", ""]
        lines += [_verdict(verdict) for verdict in report.verdicts[:50]] + [""]
    left_out = newest.left_out()
    if left_out:
        columns = list(left_out[0])
        lines += ["Left out:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(literal(str(cell.get(name, ''))) for name in columns)} |" for cell in left_out[:50]]
        lines += [f"\n… and {len(left_out) - 50} more: see plan.json", ""] if len(left_out) > 50 else [""]
    packages = ", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items())
    facts = {
        "Command": newest.about["command"],
        "Commit": _commit(environment.get("git") or {}),
        "Machine": f"{environment.get('cpu', 'unknown')}, {environment.get('cores', '?')} cores",
        "Python": f"{environment.get('python', 'unknown')}; {packages}",
    }
    lines += [f"- {name}: {literal(value)}" for name, value in facts.items() if value]
    lines += ["", "Group the runs by the tag `cell` to see means over seeds."]
    return "\n".join(lines)


def _verdict(verdict: Mapping[str, Any]) -> str:
    exploratory = " (exploratory)" if verdict["exploratory"] else ""
    return f"- **{verdict['outcome']}**{exploratory}: {literal(verdict['sentence'])}; {literal(verdict['reason'])}"


def _commit(git: Mapping[str, Any]) -> str:
    return f"{git['commit']}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else ""
