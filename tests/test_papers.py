"""What the pages of the papers' grids say: that it follows from the data beside them, by a second implementation."""

import csv
import json
import math
import re
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import papers
import pytest
from scipy import stats

from harness.planning.grid import load_grid
from harness.registry import Registry

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "papers"
NAMES = sorted(file.stem for file in PAGES.glob("*.json"))
CLAIMS = [name for name in NAMES if json.loads((PAGES / f"{name}.json").read_text())["verdicts"]]
WITHOUT_CONTROLS = {"fed_oui_readings"}
"""Its controls are those of fed_oui: the same clients, model, recipe and baseline."""


@cache
def verdicts(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((PAGES / f"{name}.json").read_text())["verdicts"]
    return found


@cache
def metrics(name: str) -> dict[tuple[str, str], dict[str, str]]:
    """The rows of a page's CSV file, by cell with its task and by seed."""
    rows = csv.DictReader((PAGES / f"{name}.csv").open(newline=""))
    return {(f"{row['task']} · {row['cell']}", row["seed"]): row for row in rows}


def test_the_summary_is_that_of_the_records() -> None:
    assert (ROOT / "docs" / "papers.md").read_text() == papers.overview(ROOT / "docs")


def commits(name: str) -> list[str]:
    """The commits that a page says its grid was run at."""
    page = (PAGES / f"{name}.md").read_text()
    return re.findall(r"`([0-9a-f]{12})", next(line for line in page.splitlines() if line.startswith("- Run at ")))


def of_this_history(commit: str) -> bool:
    git = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", commit, "HEAD"]
    return subprocess.run(git, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_its_command_and_a_commit_of_this_history(name: str) -> None:
    assert f"\n    harness run grids/proxies/{name}.yaml\n" in (PAGES / f"{name}.md").read_text()
    assert commits(name)
    if not any(of_this_history(commit) for each in NAMES for commit in commits(each)):
        pytest.skip("needs the history: git clone without --depth")
    assert [commit for commit in commits(name) if not of_this_history(commit)] == []


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claims_of_a_page_are_those_of_its_grid(name: str, registry: Registry) -> None:
    """A claim's hash covers what was written, the level and the looks: a page of other claims has to be made anew."""
    listed = load_grid(ROOT / "grids" / "proxies" / f"{name}.yaml", [], registry).claims.listed
    assert [verdict["hash"] for verdict in verdicts(name)] == [claim.hash for claim in listed]
    assert not [verdict["sentence"] for verdict in verdicts(name) if verdict["exploratory"]]


@pytest.mark.parametrize("name", CLAIMS)
def test_controls_came_out_as_planted_and_every_contrast_says_what_it_could_have_found(name: str) -> None:
    outcomes = {verdict["control"]: verdict["outcome"] for verdict in verdicts(name) if verdict["control"] != "claim"}
    planted = {"positive control": "supported", "null control": "undecided"}
    assert outcomes == ({} if name in WITHOUT_CONTROLS else planted)
    page = (PAGES / f"{name}.md").read_text().replace("\u00a0", " ")
    (_, table) = page.split("### Numbers by contrast")
    rows = [[cell.strip() for cell in row.split("|")] for row in re.findall(r"(?m)^\| \d+ \|.*$", table)]
    assert len(rows) == sum(len(verdict["parts"]) for verdict in verdicts(name))
    assert [row for row in rows if not float(row[-4]) >= 0] == [], "nothing varied where it is 0"


def by_flips(differences: Sequence[float], side: str) -> float:
    """The exact one-sided p-value of a centre that is not on a side of zero."""
    found = stats.permutation_test(
        (differences,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        n_resamples=math.inf,
        alternative=side,
        vectorized=True,
    )
    return float(found.pvalue)


def p_of(part: dict[str, Any], assume: str, side: str) -> float:
    differences = part["differences"]
    if assume == "normal" and len(set(differences)) > 1:
        return float(stats.ttest_1samp(differences, 0.0, alternative=side).pvalue)
    return by_flips(differences, side)


PARTS = [
    pytest.param(name, place, id=f"{name}-{place + 1}")
    for name in CLAIMS
    for place, verdict in enumerate(verdicts(name))
    if all(None not in part["differences"] and len(part["differences"]) <= 13 for part in verdict["parts"])
]
"""Claims whose every difference is finite, and few enough for all sign patterns."""


@pytest.mark.parametrize(("name", "place"), PARTS)
def test_p_values_of_contrasts_are_scipy_s(name: str, place: int) -> None:
    verdict = verdicts(name)[place]
    assume = verdict["fields"].get("assume", "")
    for part in verdict["parts"]:
        found = [p_of(part, assume, side) for side in ("greater", "less")]
        assert [part["p_supported"], part["p_contradicted"]] == pytest.approx(found, rel=1e-6, abs=1e-12)
        assert part["paired"]["mean"] == pytest.approx(sum(part["differences"]) / len(part["differences"]))


def of_a_claim(verdict: dict[str, Any], side: str) -> float:
    """Benjamini and Heller's p-value of "at least k of n settings", each with all of its contrasts, or of the opposite."""
    settings: dict[str, list[float]] = {}
    for part in verdict["parts"]:
        label = part["label"].split(": ")[0] if verdict["kind"] == "wins" else part["label"]
        settings.setdefault(label, []).append(part[side])
    n = len(settings)
    k = verdict["fields"].get("at_least", n) if verdict["kind"] == "wins" else n
    if side == "p_supported":
        ordered, rank = sorted(max(found) for found in settings.values()), k
    else:
        ordered, rank = sorted(min(1.0, len(found) * min(found)) for found in settings.values()), n - k + 1
    return min(1.0, (n - rank + 1) * ordered[rank - 1])


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize(("side", "outcome"), [("p_supported", "supported"), ("p_contradicted", "contradicted")])
def test_verdicts_follow_from_the_p_values_of_their_contrasts(name: str, side: str, outcome: str) -> None:
    """Holm's steps from the smallest p-value on, over the claims of the page and those that were asked before and failed."""
    assert {verdict["level"] for verdict in verdicts(name)} == {0.05}
    (family,) = {verdict["family"] for verdict in verdicts(name)}
    assert family >= len(verdicts(name))
    going_on = True
    for step, verdict in enumerate(sorted(verdicts(name), key=lambda verdict: of_a_claim(verdict, side))):
        going_on = going_on and of_a_claim(verdict, side) * (family - step) <= 0.05
        assert (verdict["outcome"] == outcome) is going_on, verdict["sentence"]


SIMPLE = [
    pytest.param(name, place, id=f"{name}-{place + 1}")
    for name in CLAIMS
    for place, verdict in enumerate(verdicts(name))
    if verdict["kind"] in ("better", "not_worse")
]


@pytest.mark.parametrize(("name", "place"), SIMPLE)
def test_differences_are_those_of_the_csv_file(name: str, place: int) -> None:
    """Score of one method minus score of the other at each seed, which the data has to six digits, margin and all."""
    verdict, rows = verdicts(name)[place], metrics(name)
    margin = verdict["fields"].get("margin", 0.0) * (1 if verdict["kind"] == "not_worse" else -1)
    for part in verdict["parts"]:
        metric = part["details"]["metric"]
        ours, theirs = part["details"]["ours"]["cell"], part["details"]["theirs"]["cell"]
        chosen = part["details"]["ours"]["chosen on seeds"] or part["details"]["theirs"]["chosen on seeds"]
        seeds = sorted({int(seed) for cell, seed in rows if cell == ours})[chosen:]
        assert len(seeds) == len(part["differences"])
        less_is_better = verdict["fields"].get("direction", "") == "min" or metric.endswith(("loss", "relative_l2"))
        for seed, difference in zip(seeds, part["differences"], strict=True):
            one, other = (rows[cell, str(seed)] for cell in (ours, theirs))
            if difference is None:
                assert "diverged" in (one["status"], other["status"])
                continue
            sign = -1 if less_is_better else 1
            found = sign * (float(one[metric]) - float(other[metric])) + margin
            size = max(abs(float(one[metric])), abs(float(other[metric])))
            assert difference == pytest.approx(found, abs=2e-5 * size + 1e-9), (part["label"], seed)
