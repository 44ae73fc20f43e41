"""Writes a page for each proxy grid that has run, and docs/papers.md, the summary of all that were ever written.

    python docs/papers.py NAME... [--results RESULTS]      # the grids grids/proxies/NAME.yaml
    python docs/papers.py [--results RESULTS]              # all that have results there: `make papers` runs them first

For a grid it writes into docs/papers/: NAME.md, the figures NAME-….svg, NAME.csv with the final metrics of every trial, and
NAME.json with every verdict in full, from which the summary and the pages of the methods are filled. What is written by hand
stands in docs/papers/readings/NAME.md and is taken over as it is.

Pages outlive the results that they were made from. A page is made with the code that its trials ran with: where later code
writes a trial's content otherwise, it does not find the trial. So a page that knows of more trials than are found is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from papers_figures import figures_of
from papers_observables import section as observables_section
from papers_pictures import picture
from papers_published import PUBLISHED
from papers_regimes import section as regimes_section
from papers_tables import about, cells, csv, escaped, facts, kind, minutes, part_rows, table, verdict_rows

from harness.judging.figures import Figure
from harness.judging.report import summary
from harness.judging.report_data import Findings, gather, number
from harness.judging.report_rules import Rules, rules
from harness.judging.verdicts import Verdict
from harness.options import nearest
from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.recording.results import Results
from harness.registry import Registry

ROOT = Path(__file__).parents[1]
PAPERS = {
    "lambda_gelu": ("λ-GELU", "2603.21991"),
    "oui_screening": ("OUI in PPO", "2603.09950"),
    "oui_screening_lunarlander": ("OUI in PPO: LunarLander", "2603.09950"),
    "two_timescales": ("Two time scales", "2602.08333"),
    "balanced_adam": ("Balanced Adam", "2601.21739"),
    "stable_grad": ("StableGrad", "2605.19856"),
    "no_batch_norm": ("StableGrad without BatchNorm", "2605.19856"),
    "fed_oui": ("FedOUI", "2605.11571"),
    "fed_oui_readings": ("FedOUI, other readings", "2605.11571"),
    "fed_oui_noisy": ("FedOUI, noisy clients", "2605.11571"),
    "fed_oui_others": ("FedOUI, other rules and controls", "2605.11571"),
    "oui_observable": ("OUI as an observable", "2605.11570"),
    "weight_decay_sweep": ("Weight-decay sweep, which OUI as an observable and OUIDecay read", "2605.11570"),
    "oui_decay": ("OUIDecay", "2605.10161"),
    "refresh": ("The refresh rule", "2605.10119"),
    "fed_sq": ("FedSQ", "2604.02990"),
    "fed_sq_resnet": ("FedSQ, a residual network", "2604.02990"),
}
"""Title and arXiv id by name of the proxy grid, in the order of the papers."""

INTRO = """# Ten papers

Each paper's abstract as claims of a grid on real data and small networks (`grids/proxies/`, minutes to an hour on two cores).
The comments of each grid say which statement a claim stands for, what no grid can decide and why, and what was
tuned. `grids/papers/` has the same questions at the papers' own scale. A verdict on a proxy is about the proxy.

A grid's claims are worth as much as its controls: a null control (the same method under another name) must be
undecided, a positive control (a planted difference) supported. Numbers are positive where the statement holds: of several
contrasts the least and the largest mean, then the corrected p-value that decides, or both where neither does.
`make papers` runs what is not done and writes the pages.
"""


def grid_file(name: str) -> Path:
    """The file of a proxy grid."""
    return ROOT / "grids" / "proxies" / f"{name}.yaml"


def look(name: str, memory: Results, registry: Registry, file: Path | None = None) -> Findings:
    """What a grid has found.

    Raises:
        GridError: if the grid cannot be planned here.
    """
    return gather(build_plan(load_grid(file or grid_file(name), [], registry), registry), memory, registry)


def page(name: str, findings: Findings, judged: Rules | None, pictures: dict[str, Figure], reading: str) -> str:
    """One grid's page, in Markdown."""
    title, arxiv = PAPERS.get(name, (name, ""))
    lines = [f"# {title}", ""]
    if arxiv:
        lines += [f"Proxy grid of [arXiv {arxiv}](https://arxiv.org/abs/{arxiv}): real data, small networks.", ""]
    lines += [f"    harness run grids/proxies/{name}.yaml", ""]
    lines += [*facts(about(findings)), f"- {answer(findings.verdicts)}", ""]
    if failed := [verdict.sentence for verdict in findings.verdicts if "FAILED" in kind(verdict)]:
        lines += [f"**A CONTROL FAILED: {escaped('; '.join(failed))}. No verdict of this page can be relied on.**", ""]
    lines += [read_by_hand(reading), ""]
    if findings.verdicts:
        lines += ["## Verdicts", ""]
        lines += table(["", "", "statement", "verdict", "because"], verdict_rows(findings.verdicts))
        lines += ["### Numbers by contrast", "", *NUMBERS, ""]
        columns = ["", "contrast", "mean [interval]", "detectable", "n", "p-values"]
        lines += table(columns, part_rows(findings.verdicts), right=4)
    if name == "weight_decay_sweep":
        lines += regimes_section(findings)
    if name == "oui_observable":
        lines += observables_section(findings)
    if judged:
        lines += ["## Rules at matched recall", "", *RULES, ""]
        lines += table(judged.columns, judged.rows, right=len(judged.columns) - 3)
        lines += ["### Where a success is a solved task", "", escaped(judged.note), ""]
        lines += table(judged.columns, judged.solved, right=len(judged.columns) - 3) if judged.solved else []
    if pictures:
        lines += ["## Figures", ""]
        for file, figure in pictures.items():
            lines += [f"### {figure.title}", "", f"![{alternative(figure)}]({file})", ""]
    lines += ["## Cells", "", "Final metrics: mean ± Student's 95 % interval over the seeds that finished.", ""]
    lines += cells(findings)
    lines += ["## Data", ""]
    lines += [
        f"The final metrics of every trial that this page uses are in [{name}.csv]({name}.csv), so that it can be"
    ]
    lines += [f"checked without training; the verdicts in full are in [{name}.json]({name}.json). Made by", ""]
    lines += [f"    python docs/papers.py {name}", ""]
    return "\n".join(lines)


RULES = (
    "What each rule would have kept of the runs, asked after a tenth of the training. Thresholds are fitted on what is not",
    "held out; intervals in brackets, 95 %, are a bootstrap over learning rates and seeds in which thresholds stay as they were",
    "fitted; *saved* is the share of the compute, *regret* the best return of a seed's runs minus the best of those kept.",
)

RELEASED = (
    "What the authors released, against what they state; the numbers are in [published/](papers/published/oui_decay.tsv) and",
    "`docs/papers_published.py` computes each row with the code of `methods/`.",
)

NUMBERS = (
    "Numbers by seed are positive where the statement holds: differences, or how far a value lies beyond the bound that the",
    "claim names. *Detectable* is the effect that the grid finds in 80 % of cases, in the same unit; the two p-values, of the",
    "statement being false and of its being true, are of that contrast alone, before any correction.",
)


def alternative(figure: Figure) -> str:
    """A figure in words, as Markdown takes them between brackets."""
    return re.sub(r"[\[\]\n\"]", " ", figure.text)[:1500]


def answer(verdicts: Sequence[Verdict]) -> str:
    """How many claims came out how, and whether the controls did as planted."""
    return told([{"kind": kind(v), "outcome": str(v.outcome)} for v in verdicts])


def told(verdicts: Sequence[dict[str, Any]]) -> str:
    """The same from plain data."""
    if not verdicts:
        return "The grid states no claim."
    claims = [verdict["outcome"] for verdict in verdicts if verdict["kind"] == "claim"]
    controls = [verdict["kind"] for verdict in verdicts if verdict["kind"] != "claim"]
    counts = [f"{claims.count(name)} {name}" for name in ("supported", "contradicted", "undecided") if name in claims]
    text = f"{len(claims)} claim{'s' if len(claims) != 1 else ''}: {', '.join(counts)}" if claims else "No claims"
    failed = sum("FAILED" in control for control in controls)
    waiting = sum(control.endswith("open") for control in controls)
    if failed:
        return f"{text}; **{failed} of {len(controls)} controls FAILED**."
    if waiting:
        return f"{text}; {waiting} of {len(controls)} controls not decided yet."
    return f"{text}; {len(controls)} controls as planted." if controls else f"{text}; no controls."


def read_by_hand(reading: str) -> str:
    """What a person thinks of a page, between marks, so that it can be taken over anew without the results."""
    told = f"## Reading\n\n{reading.strip()}\n\n" if reading.strip() else ""
    return f"<!-- reading -->\n\n{told}<!-- end of reading -->"


def record(name: str, findings: Findings) -> dict[str, Any]:
    """What the summary needs of a grid, and every verdict in full."""
    verdicts = [verdict.to_json() | {"control": kind(verdict)} for verdict in findings.verdicts]
    return {"grid": name, "about": about(findings), "summary": summary(findings), "verdicts": verdicts}


def write(name: str, findings: Findings, memory: Results, docs: Path) -> None:
    """Writes all that belongs to one grid."""
    folder = docs / "papers"
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{name}-*.svg"):
        old.unlink()
    pictures = {f"{name}-{n}.svg": figure for n, figure in enumerate(figures_of(name, findings, memory), 1)}
    for file, figure in pictures.items():
        (folder / file).write_text(picture(figure), encoding="utf-8")
    note = folder / "readings" / f"{name}.md"
    reading = note.read_text(encoding="utf-8") if note.exists() else ""
    (folder / f"{name}.md").write_text(
        page(name, findings, rules(findings, memory), pictures, reading), encoding="utf-8"
    )
    (folder / f"{name}.csv").write_text(csv(findings), encoding="utf-8")
    content = json.dumps(record(name, findings), indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(content + "\n", encoding="utf-8")


def records(docs: Path) -> dict[str, dict[str, Any]]:
    """What was written of each grid so far, in the order of the papers."""
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (docs / "papers").glob("*.json")}
    order = list(PAPERS)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def ended_on_page(name: str, docs: Path) -> int:
    """How many trials a page tells of; 0 if there is none."""
    one = records(docs).get(name)
    return sum(one["about"]["statuses"].values()) if one else 0


def overview(docs: Path) -> str:
    """The summary, in Markdown, from what was written of each grid."""
    known = records(docs)
    rows = []
    for name, (title, arxiv) in PAPERS.items():
        link = f"[{title}](papers/{name}.md)" if name in known else title
        if name in known:
            told_about = known[name]["about"]
            time = f"{minutes(told_about['train_seconds'])}, CPU {minutes(told_about['cpu_seconds'])}"
            trials = f"{sum(told_about['statuses'].values())} of {told_about['planned']}"
            rows.append([link, arxiv, plain_told(known[name]), trials, time, commits(told_about["commits"])])
        else:
            rows.append([link, arxiv, "not run yet", "", "", ""])
    lines = [INTRO, *table(["paper", "arXiv", "verdicts", "trials", "training, all trials", "run at"], rows)]
    for name, one in known.items():
        title = PAPERS.get(name, (name, ""))[0]
        lines += [f"## {title}", "", f"    harness run grids/proxies/{name}.yaml", ""]
        lines += [f"{plain_told(one)} Numbers by task, figures and data: [{title}](papers/{name}.md).", ""]
        if one["verdicts"]:
            columns = ["", "statement", "verdict", "numbers"]
            lines += table(columns, ([*claim_row(verdict)] for verdict in one["verdicts"]))
    lines += ["## Published numbers, judged without training", "", *RELEASED, ""]
    lines += table(["arXiv", "statement", "verdict", "numbers"], published_rows())
    return "\n".join(lines).rstrip() + "\n"


def commits(counts: dict[str, int]) -> str:
    """The states of the code that a grid ran at, each by the first digits of its commit.

    >>> commits({"5b0a3343eaaf with changes that were not committed": 80, "802f4c924802": 5})
    '`5b0a334` and changes, `802f4c9`'
    """
    return ", ".join(f"`{name[:7]}`{' and changes' if 'with changes' in name else ''}" for name in counts)


def published_rows() -> Iterator[list[str]]:
    """The statements that released numbers decide, each with its verdict."""
    for one in PUBLISHED:
        found, numbers = one.answer()
        yield [one.arxiv, escaped(one.statement), f"**{found}**", escaped(numbers)]


def plain_told(one: dict[str, Any]) -> str:
    """The answer of a grid, from its record."""
    return told([{"kind": verdict["control"], "outcome": verdict["outcome"]} for verdict in one["verdicts"]])


def claim_row(verdict: dict[str, Any]) -> Iterator[str]:
    """A claim in one row: its numbers are the range of the means over its contrasts, and the p-value that decides."""
    yield verdict["control"]
    yield escaped(verdict["sentence"])
    yield f"**{outcome(verdict)}**"
    means = [
        part["paired"]["mean"] for part in verdict["parts"] if part["paired"] and part["paired"]["mean"] is not None
    ]
    sides = {"supported": ["p_supported"], "contradicted": ["p_contradicted"]}
    kept = sides.get(verdict["outcome"], ["p_supported", "p_contradicted"])
    p = f"p = {' and '.join(number(verdict[side], 2) for side in kept)}"
    if not means:
        yield escaped(verdict["reason"])
    elif len(means) == 1:
        yield f"{number(means[0], 3)}; {p}"
    else:
        yield f"{number(min(means), 3)} to {number(max(means), 3)} on {len(means)}; {p}"


def outcome(verdict: dict[str, Any]) -> str:
    """A verdict in a word, or two where it was not fixed before the results."""
    return str(verdict["outcome"]) + (", exploratory" if verdict["exploratory"] else "")


READING = re.compile("<!-- reading -->.*?<!-- end of reading -->", re.DOTALL)
MARKED = re.compile(r"(<!-- result of (\w+) -->\n).*?(<!-- end of result -->)", re.DOTALL)


def fill(docs: Path) -> None:
    """Takes over what was written by hand, and fills the results on the pages of the methods, each between its marks."""
    known = records(docs)
    for note in sorted((docs / "papers" / "readings").glob("*.md")):
        if (file := docs / "papers" / note.name).exists():
            reading = read_by_hand(note.read_text(encoding="utf-8"))
            text = READING.sub(lambda _, reading=reading: reading, file.read_text(encoding="utf-8"))  # type: ignore[misc]
            file.write_text(text, encoding="utf-8")
    for file in sorted((docs / "methods").glob("*.md")):
        text = file.read_text(encoding="utf-8")
        filled = MARKED.sub(lambda match: f"{match[1]}{result_lines(match[2], known)}{match[3]}", text)
        if filled != text:
            file.write_text(filled, encoding="utf-8")


def result_lines(name: str, known: dict[str, dict[str, Any]]) -> str:
    """What a method's page says of a grid: the answer, each claim with its verdict, and where the numbers are."""
    if name not in known:
        return f"`grids/proxies/{name}.yaml`: not run yet.\n"
    one = known[name]
    lines = [f"[{PAPERS.get(name, (name, ''))[0]}](../papers/{name}.md): {plain_told(one)}", ""]
    claims = [verdict for verdict in one["verdicts"] if verdict["control"] == "claim"]
    lines += [f"- {outcome(verdict)}: {escaped(verdict['sentence'])}" for verdict in claims]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("HARNESS_RESULTS", "results")))
    asked = parser.parse_args()
    for name in asked.names:
        if name not in PAPERS:
            parser.error(f"NAME: found {name!r}, allowed: {', '.join(PAPERS)}{nearest(name, PAPERS)}")
    memory, registry = Results(asked.results), Registry()
    for name in asked.names or PAPERS:
        try:
            findings = look(name, memory, registry)
        except GridError as error:
            if asked.names:
                parser.error(str(error))
            print(f"{name}: not planned here: {error}")
            continue
        if len(findings.results) < (had := ended_on_page(name, ROOT / "docs")):
            kept = f"{name}: found {len(findings.results)} trials in {asked.results}, the page has {had} and is kept"
            if asked.names:
                parser.error(f"{kept}; remove docs/papers/{name}.json to write it all the same")
            print(kept)
        elif findings.results:
            write(name, findings, memory, ROOT / "docs")
            print(f"docs/papers/{name}.md: {answer(findings.verdicts)}")
        elif asked.names:
            parser.error(f"NAME: found {name!r}, of which no trial has ended in {asked.results}")
    (ROOT / "docs" / "papers.md").write_text(overview(ROOT / "docs"), encoding="utf-8")
    fill(ROOT / "docs")


if __name__ == "__main__":
    main()
