"""The report: harmless whatever its texts say, small, readable without seeing its figures, the same as the records."""

import csv
import hashlib
import io
import json
import math
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judging.made import ended, made_plan, several_trials
from papers_tables import verdict_rows
from rich.console import Console
from scipy import stats

from harness.judging import drawing
from harness.judging.figures import Figure, Line, _bands, csv_text, curves, harmless
from harness.judging.report import html, markdown, parquet, screening, write_report
from harness.judging.report_curves import curve, seed_tracks
from harness.judging.report_data import Findings, gather, number, trial_table
from harness.judging.report_figures import sensitivities, verdict_figure
from harness.judging.report_overall import overall
from harness.judging.report_rules import Rules
from harness.judging.report_tasks import task_tables
from harness.judging.telling import difference, verdicts
from harness.planning.plan import LeftOut, Plan
from harness.recording.attempts import Attempt
from harness.recording.grids import open_submission
from harness.recording.overview import Report, grid_content, read_report
from harness.recording.records import Result, Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.running.driver import submitted

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
TAGS = (
    "html head title style body header main nav section article figure figcaption h1 h2 h3 p ul li a div span details "
    "summary table caption thead tbody tr th td dl dt dd pre svg g path text desc defs use image rect clippath"
)
ALLOWED = VOID | set(TAGS.split())
"""Elements that the page is made of: none of them can run or load anything."""

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\" onmouseover=\"alert(1)' x='",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "=cmd|' /C calc'!A0",
    "]]><svg onload=alert(1)>",
    "$\\frac{1}{0}$ | ` | \x1b[31m \u202e \x00 \ud800".encode("utf-8", "replace").decode(),
    "&lt;b&gt;",
]


class Page(HTMLParser):
    """A strict reader: every element is closed by its own end tag, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check_harmless(text: str) -> Page:
    """Nothing in the page runs or loads, and every id is there once."""
    page = Page(text)
    ids: list[str] = []
    for tag, attributes in page.tags:
        assert tag in ALLOWED, tag
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "srcdoc", "action", "formaction"), (tag, name)
            if name in ("href", "src"):
                assert value is not None and re.match(r"#|data:text/csv|data:image/png", value), (tag, value)
        if "id" in attributes:
            ids.append(str(attributes["id"]))
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")}
    assert links <= set(ids)
    return page


def findings(plan: Plan, results: dict[str, Result], folder: Path) -> tuple[Findings, Results]:
    """A results folder with these results."""
    memory = Results(folder)
    for hash, result in results.items():
        file = memory.trial(hash).folder / "result.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(result)))
    return gather(plan, memory, Registry()), memory


def scores(plan: Plan, seed: int = 0) -> dict[str, Any]:
    """A score for every trial; the cells differ a little."""
    generator = np.random.default_rng(seed)
    cells = list(dict.fromkeys(trial.cell for trial in plan.trials))
    each = len(plan.trials) // len(cells)
    return {cell: 0.5 + 0.02 * index + 0.05 * generator.normal(size=each) for index, cell in enumerate(cells)}


def write_curves(plan: Plan, memory: Results, points: int, layers: tuple[str, ...] = ()) -> None:
    """Learning curves for the trials that have none."""
    for place, trial in enumerate(plan.trials):
        result = memory.trial(trial.hash).result()
        with Attempt(memory.folder, trial.hash, trial.spec.to_json(), "c") as attempt:
            for point in range(points):
                value = 1 - math.exp(-point / 10) + 0.01 * (place % 7)
                metrics = {"val/accuracy": value, "time/train_seconds": 0.1 * point}
                metrics |= {f"probe/oui/{layer}": value * index for index, layer in enumerate(layers)}
                metrics |= {"probe/oui/mean": value} if layers else {}
                attempt.record({"step": point * 5, "time": 1.0, "metrics": metrics})
            assert result is not None
            attempt.finish(replace(result, steps=100))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, Results]:
    plan = made_plan(
        [{"better": "a", "than": "b"}, {"not_worse": "b", "than": "a", "margin": 5}],
        tasks=("t", "u", "v"),
        methods=("a", "b", "c"),
        axes={"a": [0.1, 0.01, 0.001]},
        seeds=6,
    )
    plan.left_out.append(LeftOut("t", "d", "d needs clients"))
    results = ended(plan, scores(plan), time__train_seconds={cell: 1 + v for cell, v in scores(plan, 1).items()})
    diverged = plan.trials[-1]
    results[diverged.hash] = Result(diverged.hash, Status.DIVERGED, "c", reason="loss is nan", started=1, ended=2)
    _, memory = findings(plan, results, tmp_path_factory.mktemp("small"))
    write_curves(plan, memory, 12, ("first", "second", "mean"))
    return gather(plan, memory, Registry()), memory


@pytest.fixture(scope="module")
def page_text(small: tuple[Findings, Results]) -> str:
    return html(*small)


def test_every_section_is_there_and_the_page_is_well_formed(page_text: str) -> None:
    page = check_harmless(page_text)
    shown = " ".join(page.texts)
    for part in (
        "Verdicts",
        "All tasks",
        "Left out",
        "d needs clients",
        "Not finished",
        "loss is nan",
        "Learning curves",
    ):
        assert part in shown
    for figure in (
        "Performance profile",
        "Ranks over tasks",
        "Sensitivity to lr",
        "Cost against quality",
        "oui by layer: b",
    ):
        assert figure in shown, figure
    assert shown.index("better than") < shown.index("Learning curves"), "verdicts come first"


def test_the_policy_allows_the_style_sheet_and_nothing_else(page_text: str) -> None:
    text = page_text
    (policy,) = [a["content"] for _, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None and policy is not None
    digest = b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    assert policy == allowed
    assert text.count("<style") == 1


def test_every_figure_has_a_text_and_its_data(page_text: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", page_text, re.DOTALL)
    assert len(figures) > 15
    for figure in figures:
        for svg in re.findall(r"<svg (?![^>]*aria-hidden).*?</svg>", figure, re.DOTALL):
            labels = re.search(r'role="img" aria-labelledby="(\S+) (\S+)"', svg)
            assert labels is not None
            for name, tag in zip(labels.groups(), ("title", "desc"), strict=True):
                found = re.search(rf'<{tag} id="{name}">([^<]+)</{tag}>', svg)
                assert found is not None and len(found[1]) > 3
        (link,) = re.findall(
            r'<a class="data" download="[^"]+\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', figure
        )
        rows = list(csv.reader(io.StringIO(b64decode(link).decode())))
        assert len(rows) > 1 and len({len(row) for row in rows}) == 1


def test_the_numbers_are_those_of_the_results(small: tuple[Findings, Results], page_text: str) -> None:
    found, _ = small
    table = next(table for table in found.tables if table.task == "u")
    row = next(row for row in table.rows if row.label == "b")
    values = [found.results[t.hash].metrics["test/accuracy"] for t in found.plan.trials if t.cell == "u · b"]
    assert row.mean == pytest.approx(np.mean(values))
    half = 2.5705818 * np.std(values, ddof=1) / math.sqrt(6)  # Student's quantile for five degrees of freedom
    assert row.high == pytest.approx(np.mean(values) + half)
    assert f"{row.mean:.4g}" in page_text


def test_a_real_difference_is_marked_and_a_failure_comes_last(tmp_path: Path) -> None:
    plan = made_plan(methods=("a", "b", "c"), seeds=8)
    noise = np.random.default_rng(0).normal(size=8) * 0.01
    made = {"t · a": 0.5 + noise, "t · b": 0.6 + noise[::-1], "t · c": np.array([0.9] * 7 + [-np.inf])}
    found, _ = findings(plan, ended(plan, made), tmp_path)
    (table,) = found.tables
    assert [row.label for row in table.rows] == ["b", "a", "c"]
    marks = {row.label: (row.mark, row.p) for row in table.rows}
    # b is above a on all eight seeds: 2 / 256, times two for two comparisons
    assert marks["b"] == ("better", pytest.approx(2 * 2 / 256))
    assert marks["a"] == ("", None)
    assert marks["c"][0] == "no difference shown", "one failure outweighs all wins"
    assert table.rows[-1].others == "1 diverged"


def chosen_cells(level: float = 0.05) -> tuple[Plan, dict[str, Result]]:
    """A method with two cells, of which the first three of nine seeds choose one, against a method with one."""
    plan = made_plan([{"better": "a", "than": "b"}], seeds=9, axes={"a": [0.1, 0.2]}, level=level)
    made = {"t · a · lr=0.1": np.arange(9.0), "t · a · lr=0.2": np.arange(9.0) - 5, "t · b": np.zeros(9)}
    return plan, ended(plan, made)


def test_the_numbers_of_a_chosen_cell_are_those_of_the_seeds_that_judge(tmp_path: Path) -> None:
    found, memory = findings(*chosen_cells(), tmp_path)
    row, _ = found.tables[0].rows
    (part,) = found.verdicts[0].parts
    assert part.paired is not None and part.paired.student is not None
    assert (row.mean, row.finished, row.seeds) == (part.paired.mean, 6, 6), "b is zero"
    assert (row.low, row.high) == pytest.approx(part.paired.student)
    said = "Where a method has several cells, the first 3 of 9 seeds chose the one that is shown"
    for text in (" ".join(Page(html(found, memory)).texts), markdown(found)):
        assert said in text and "lr=0.1, best of 2 on validation" in text and "All 3 cells" in text
    assert "| `a · lr=0.1` | `4` |" in markdown(found), "of all cells every seed is shown"


def test_a_single_seed_is_shown_though_it_chose(tmp_path: Path) -> None:
    plan = made_plan(seeds=1, axes={"a": [0.1, 0.2]})
    (table,) = task_tables(plan, ended(plan, scores(plan)))
    assert [row.finished for row in table.rows] == [1, 1]
    assert table.choice.endswith("its number is too good for having been the best.")


def test_the_data_of_a_verdict_s_figure_name_the_seeds_that_judged(tmp_path: Path) -> None:
    found, _ = findings(*chosen_cells(), tmp_path)
    figure = verdict_figure(found.verdicts[0], "v")
    assert figure is not None
    assert figure.rows == [["t", seed, float(seed)] for seed in range(3, 9)]


def test_percentages_are_not_rounded_to_whole_ones(tmp_path: Path) -> None:
    found, _ = findings(*chosen_cells(level=0.025), tmp_path)
    assert "two-sided, 2.5 % over the table" in found.tables[0].note
    assert difference(found.verdicts[0].parts[0]) == "5.5 [3, 8] 96.88%"  # 1 - 2 / 64
    plan = made_plan(tasks=("t", "u"), methods=("a", "b", "c"), level=0.001, seeds=4)
    several, _ = findings(plan, ended(plan, scores(plan)), tmp_path / "several")
    (ranks,) = [figure for figure in overall(several).figures if figure.title == "Ranks over tasks"]
    assert "(Nemenyi, 0.1 %)" in ranks.text


def test_trials_that_share_a_seed_are_one_curve(tmp_path: Path) -> None:
    plan = several_trials(made_plan(methods=("a",), seeds=3), 2)
    found, memory = findings(plan, ended(plan, scores(plan)), tmp_path)
    write_curves(plan, memory, 4)
    tracks = [track["val/accuracy"] for track in seed_tracks(memory, found.evidence, "t", "t · a", ("val/accuracy",))]
    drawn = curve(tracks)
    assert drawn is not None and drawn.seeds == [3] * 4
    firsts = [0.01 * (place % 7) for place in range(6)]  # as `write_curves` has them at the first step
    means = np.mean(np.reshape(firsts, (3, 2)), axis=1)
    half = stats.t.ppf(0.975, 2) * stats.sem(means)
    assert (drawn.mean[0], drawn.high[0] - drawn.mean[0]) == pytest.approx((means.mean(), half))


def test_where_one_number_is_left_there_is_no_band(tmp_path: Path) -> None:
    drawn = curve([{0.0: (0.0, 0.5), 5.0: (1.0, 0.7)}, {0.0: (0.0, 0.6)}])
    assert drawn is not None and drawn.seeds == [2, 1]
    assert drawn.low[0] < drawn.mean[0] < drawn.high[0]
    assert math.isnan(drawn.low[1]) and math.isnan(drawn.high[1])
    plan = made_plan(methods=("a",), seeds=1, axes={"a": [0.1, 0.2]})
    found, memory = findings(plan, ended(plan, scores(plan)), tmp_path)
    (figure,) = sensitivities(found.evidence, "t", found.tables[0].rows, "s")
    assert [row[1:2] + [math.isnan(bound) for bound in row[3:]] for row in figure.rows] == [
        [0.1, True, True],
        [0.2, True, True],
    ]
    check_harmless(html(found, memory))


def test_methods_on_fewer_tasks_are_named(tmp_path: Path) -> None:
    plan = made_plan(tasks=("t", "u"), methods=("a", "b", "c"), seeds=3)
    plan = replace(plan, trials=[trial for trial in plan.trials if trial.cell != "u · c"])
    found, _ = findings(plan, ended(plan, scores(plan)), tmp_path)
    table = overall(found).tables[0]
    assert [row[0] for row in table.rows] == ["a", "b"]
    assert table.note.endswith("Left aside, as they run on fewer tasks: c.")


def test_the_markdown_has_all_that_the_page_says_in_words(tmp_path: Path) -> None:
    claims = [{"better": "a", "than": "b"}, {"correlated": "test/accuracy", "against": "recipe.lr", "above": 0.0}]
    plan = replace(made_plan(claims, seeds=6, axes={"a": [0.1, 0.2, 0.3]}), notes=["a note of the plan"])
    results = ended(plan, scores(plan))
    results[plan.trials[-1].hash] = Result(plan.trials[-1].hash, Status.FAILED, "c", started=1, ended=2)
    found, _ = findings(plan, results, tmp_path)
    text = markdown(found)
    better = found.verdicts[0]
    assert f"- Held back by `{better.held[0]}`" in text
    assert "p holds | p fails" in text and "## Early measures" in text and "- `a note of the plan`" in text
    assert f"- `t: metric: test/accuracy; ours: cell: {better.parts[0].details['ours']['cell']}, " in text


def test_the_metric_in_markdown_is_no_markup(tmp_path: Path) -> None:
    plan = replace(made_plan(seeds=2), metrics={"t": ["val/<img src=x onerror=alert(1)>|x", "max"]})
    found, _ = findings(plan, ended(plan, scores(plan)), tmp_path)
    header = next(line for line in markdown(found).splitlines() if "onerror" in line)
    assert header.startswith("| method | `test/<img src=x onerror=alert(1)>\\|x` (higher is better) |")


BASIS = "rests on 6 seeds that vary split, partition, init, data, environment, evaluation, method, probe; 6 splits of the data"


def test_early_measures_are_those_of_screening_claims_too(small: tuple[Findings, Results]) -> None:
    verdict = small[0].verdicts[0]
    kinds = [replace(verdict, kind=kind) for kind in ("precision", "correlated", "screening", "better")]
    assert len(list(screening(kinds))) == 3 * len(verdict.parts)


def test_the_markdown_says_what_a_verdict_rests_on_and_what_could_be_detected(small: tuple[Findings, Results]) -> None:
    found, _ = small
    text = markdown(found)
    assert text.count(f"`{BASIS}; ") == len(found.verdicts)
    for verdict in found.verdicts:
        for part in verdict.parts:
            assert f"`{difference(part)}` | `{number(part.detectable, 3)}` |" in text
    assert text.count("normally distributed") == len(found.tables)


def test_a_terminal_says_once_what_all_claims_rest_on(small: tuple[Findings, Results]) -> None:
    one, other = small[0].verdicts
    assert list(verdicts([one, other]))[1:] == [BASIS]
    other = replace(other, rests_on=other.rests_on | {"splits": 1})
    assert list(verdicts([one, other]))[1:] == [
        f"{one.sentence}: {BASIS}",
        f"{other.sentence}: {BASIS.replace('6 splits', '1 split')}",
    ]
    assert len(list(verdicts([]))) == 1


def test_too_few_seeds_are_said_to_be_too_few(tmp_path: Path) -> None:
    plan = made_plan(seeds=3)
    found, _ = findings(plan, ended(plan, {"t · a": np.zeros(3), "t · b": np.ones(3)}), tmp_path)
    assert found.tables[0].rows[0].mark == "no difference shown"
    assert "3 seeds are too few to show any difference among 2 methods" in found.tables[0].note


@pytest.mark.parametrize("seeds", [4, 5])
def test_aggregates_of_too_few_seeds_have_no_interval_and_the_report_says_so(seeds: int, tmp_path: Path) -> None:
    plan = made_plan(tasks=("t", "u"), methods=("a", "b"), seeds=seeds)
    found, _ = findings(plan, ended(plan, scores(plan)), tmp_path)
    table, *_ = overall(found).tables
    assert {"[" in cell for row in table.rows for cell in row[1:5]} == {seeds == 5}
    assert ("from five seeds on" in table.note) == (seeds == 4)
    assert ("hold the truth in 95 % at least" in table.note) == (seeds == 5)


def test_failure_rates_count_every_cell(small: tuple[Findings, Results], page_text: str) -> None:
    table = next(table for table in overall(small[0]).tables if table.title.startswith("Failure rates"))
    assert table.title == "Failure rates: 1 of 90 trials"
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["a"][0] == "0/54" and rows["c"][0] == "1/18"
    low, high = stats.binomtest(1, 18).proportion_ci(method="exact")
    assert rows["c"][1] == f"0.056 [{low:.3g}, {high:.3g}]" and rows["c"][1] in page_text


def test_the_probability_of_improvement_is_over_the_baseline(tmp_path: Path) -> None:
    plan = made_plan(methods=("a", "b"), seeds=4)
    found, _ = findings(plan, ended(plan, {"t · a": np.arange(4.0), "t · b": np.arange(4.0) + 0.5}), tmp_path)
    table, *_ = overall(found).tables
    assert table.columns[-1] == "P(better than baseline)" and "the baseline, a," in table.note
    # b wins 4 + 3 + 2 + 1 of 16 pairs; the interval is that of 2.5 of 4
    low, high = stats.beta.ppf([0.025, 0.975], [2.5, 3.5], [2.5, 1.5])
    assert [row[-1] for row in table.rows] == ["", f"0.625 [{low:.3g}, {high:.3g}]"]
    assert f"`0.625 [{low:.3g}, {high:.3g}]`" in markdown(found)


def test_time_to_target_by_hand(tmp_path: Path) -> None:
    plan = made_plan(tasks=("t", "u", "v"), methods=("a", "b"), seeds=3)
    for trial in plan.trials:
        if trial.task_label != "v":
            trial.spec.recipe["target"] = 0.4
    results = ended(plan, scores(plan))
    times = {"t · a": (10, 30, 20), "t · b": (30, 10, 10), "u · a": (40, 50, 60), "u · b": (None, 25, None)}
    for trial in plan.trials:
        if time := times.get(trial.cell, (None,) * 3)[trial.spec.seed["init"]]:
            results[trial.hash].metrics.update({"steps_to_target": float(time), "time/to_target": 2.0 * time})
    found, memory = findings(plan, results, tmp_path)
    section = overall(found)
    tables = {table.title: table.rows for table in section.tables}
    assert tables["Time to target"] == [
        ["t", "a", "0.4", "3/3", "20", "40"],
        ["t", "b", "0.4", "3/3", "10", "20"],
        ["u", "a", "0.4", "3/3", "50", "100"],
        ["u", "b", "0.4", "1/3", "never", "never"],
    ]
    # a is twice the fastest on t and the fastest on u: (2/3 + 1) / 2; b is the fastest on t alone
    assert [row[:3] for row in tables["Speed over tasks"]] == [["a", "2/2", "0.833"], ["b", "1/2", "0.500"]]
    assert [row[4] for row in tables["Speed over tasks"]] == ["1", "0"]
    (figure,) = [figure for figure in section.figures if figure.title == "Time to target over tasks"]
    assert "a: 50% by steps" in figure.text and len(figure.svgs) == 2
    assert "Time to target over tasks" in " ".join(check_harmless(html(found, memory)).texts)
    results[plan.trials[0].hash] = replace(results[plan.trials[0].hash], status=Status.SCREENED)
    left, _ = findings(plan, results, tmp_path)
    (times_left,) = [table.rows for table in overall(left).tables if table.title == "Time to target"]
    assert [row[:2] for row in times_left] == [["t", "b"], ["u", "a"], ["u", "b"]], "a time that is censored is no time"


def test_the_rules_have_their_tables(small: tuple[Findings, Results], monkeypatch: pytest.MonkeyPatch) -> None:
    found = Rules(["rule", "recall"], [["oui", "0.8"], ["lr", "0.8"]], [["oui", "0.5"]], "475 on cartpole/ppo", [])
    monkeypatch.setattr("harness.judging.report.rules", lambda findings, memory: found)
    page = html(*small)
    assert "All 2 rows</summary>" in page
    assert "All 1 rows, by solved tasks</summary>" in page
    assert "475 on cartpole/ppo" in page


def test_a_grid_without_any_result_has_a_report(tmp_path: Path) -> None:
    found, memory = findings(made_plan([{"better": "a", "than": "b"}]), {}, tmp_path)
    page = check_harmless(html(found, memory))
    assert "20 not run" in " ".join(page.texts)
    assert "20 not run" in markdown(found)


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("hostile")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=40)), min_size=6, max_size=6, unique=True)
)
def test_hostile_texts_are_harmless(hostile_folder: Path, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    first, second, task, reason, error, metric = texts
    plan = made_plan(tasks=(f"t{task}",), methods=(f"m{first}", f"n{second}"), seeds=2)
    plan = replace(plan, name="made", left_out=[LeftOut(task, first, reason)], grid_text=error, notes=[reason])
    results = ended(plan, scores(plan))
    broken = plan.trials[0].hash
    results[broken] = Result(broken, Status.FAILED, "c", started=1, ended=2, reason=reason, error=error)
    results[plan.trials[1].hash].metrics[f"probe/{metric}"] = 1.0
    found, memory = findings(plan, results, hostile_folder / str(abs(hash(tuple(texts)))))
    page = check_harmless(html(found, memory))
    shown = "".join(page.texts)
    for text in (reason, error):
        assert visible(text) in visible(shown), "it is shown as it is"
    for line in markdown(found).splitlines():
        assert not re.sub(r"`[^`]*`", "", line).count("<"), "outside of code spans there is no text of anybody"
    columns, rows = trial_table(found)
    for row in csv.reader(io.StringIO(csv_text(columns, rows))):
        for cell in row:
            assert not cell.strip().startswith(tuple("=+@")) and (not cell.startswith("-") or float(cell) < 0)
    parquet(found)


def visible(text: str) -> str:
    """A text without white space and without what HTML has no place for."""
    return "".join(c for c in text if c.isprintable() and not c.isspace())


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1", " =1", "\r=1", "|calc", "＝1"])
def test_a_text_is_no_formula(cell: str) -> None:
    assert harmless(cell) == "'" + cell


def test_numbers_stay_numbers() -> None:
    assert [harmless(cell) for cell in (-1.5, 3, 1 / 3, None, float("nan"))] == [-1.5, 3, 1 / 3, None, ""]
    figure = Figure("f", "", [], ["x"], [[1 / 3], [float("nan")]], [])
    assert b64decode(figure.data_uri.partition(",")[2]) == b'x\r\n0.333333\r\n""\r\n', "a page has six digits"


def test_a_curve_has_nothing_of_the_one_before() -> None:
    """They share a figure: whatever was drawn into it, on a logarithmic axis or a linear one, is gone."""
    drawn = {
        "log": [Line("a", [0, 1, 2], [1e-4, 1.0, 100.0], [1e-5, 0.5, 50.0], [1e-3, 2.0, 200.0], colour=2)],
        "few": [Line("b", [10, 20], [0.5, 0.25], colour=0)],
        "many": [Line(str(n), list(range(40)), [n * x / 7 - 3 for x in range(40)], colour=n) for n in range(5)],
    }

    def draw(name: str) -> str:
        return curves(drawn[name], ("steps", name), "t", "d", "k")

    alone = {}
    for name in drawn:
        drawing._sheet.cache_clear()
        alone[name] = draw(name)
    for order in permutations(drawn):
        drawing._sheet.cache_clear()
        assert {name: draw(name) for name in order} == alone


def test_a_band_has_a_gap_where_it_is_not_known() -> None:
    """As matplotlib's own `fill_between` draws it, here as one collection for all lines."""
    from matplotlib.figure import Figure as Canvas

    nan, x = math.nan, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    line = Line("a", x, x, [0.0, 1.0, nan, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 5.0, 6.0, nan])
    axes = Canvas().add_axes((0, 0, 1, 1))
    theirs = [set(map(tuple, path.vertices)) for path in axes.fill_between(x, line.low, line.high).get_paths()]
    assert [set(map(tuple, band)) for band in _bands(line)] == theirs
    assert len(theirs) == 2
    assert not list(_bands(Line("b", x, x)))
    assert not list(_bands(Line("c", [0.0], [0.0], [nan], [nan])))
    assert curves([line, line], ("x", "y"), "t", "d", "k").count('class="f0"') == 4


def test_a_figure_takes_its_colours_from_the_page() -> None:
    svg = curves([Line("a", [0, 1], [0, 1], [0, 0.5], [0.5, 1.5])], ("x", "<y> $"), "t", "d", "k")
    assert 'class="s0"' in svg and 'class="f0"' in svg and "currentColor" in svg
    assert "style=" not in svg and "#c0ffe" not in svg and "#0a0b0c" not in svg and "<style" not in svg
    assert "&lt;y&gt; $" in svg
    again = curves([Line("a", [0, 1], [0, 1], [0, 0.5], [0.5, 1.5])], ("x", "<y> $"), "t", "d", "k")
    assert svg == again, "the same figure is the same text"


def test_the_exports_agree_with_the_results(small: tuple[Findings, Results], tmp_path: Path) -> None:
    import pyarrow.parquet

    found, memory = small
    plan = found.plan
    files = {
        form: write_report(plan, memory, Registry(), form, tmp_path / form) for form in ("csv", "parquet", "markdown")
    }
    rows = list(csv.DictReader(files["csv"].open(newline="")))
    table = pyarrow.parquet.read_table(files["parquet"]).to_pylist()
    assert [row["hash"] for row in rows] == [row["hash"] for row in table] == [trial.hash for trial in plan.trials]
    for row, other, trial in zip(rows, table, plan.trials, strict=True):
        result = found.results[trial.hash]
        assert row["status"] == other["status"] == result.status
        if result.status is Status.FINISHED:
            assert other["test/accuracy"] == result.metrics["test/accuracy"]
            assert float(row["test/accuracy"]) == other["test/accuracy"]
            assert other["recipe.lr"] == trial.axes.get("recipe.lr")
    text = files["markdown"].read_text()
    assert "## Undecided" in text or "## Supported" in text
    assert "`d needs clients`" in text


@pytest.fixture(scope="module")
def written(small: tuple[Findings, Results]) -> Path:
    found, memory = small
    assert read_report(memory, "made") is None
    return write_report(found.plan, memory, Registry())


def test_the_page_and_the_verdicts_lie_in_the_folder_of_the_grid(
    small: tuple[Findings, Results], written: Path
) -> None:
    found, memory = small
    assert written == memory.folder / "grids" / "made" / "report.html"
    verdicts = json.loads((written.parent / "verdicts.json").read_text())
    assert [verdict["outcome"] for verdict in verdicts] == [str(verdict.outcome) for verdict in found.verdicts]


def test_the_parent_run_in_mlflow_tells_the_verdicts(small: tuple[Findings, Results], written: Path) -> None:
    found, memory = small
    submission = open_submission(
        memory, "made", grid_text="", trials=[submitted(t) for t in found.plan.trials], left_out=[], environment={}
    )
    report = read_report(memory, "made")
    assert report is not None
    content = grid_content("made", [submission], {}, False, report)
    assert content.tags["report"] == report.digest
    told = content.tags["mlflow.note.content"]
    for verdict in found.verdicts:
        assert f"- **{verdict.outcome}**" in told and f"`{verdict.sentence}`" in told
    assert "report" not in grid_content("made", [submission], {}, False).tags


def test_an_exploratory_claim_is_marked_wherever_a_verdict_is_shown(small: tuple[Findings, Results]) -> None:
    found, memory = small
    marked = replace(found.verdicts[0], exploratory=["it was added or changed after the last run of the grid"])
    plain = replace(found.verdicts[1], exploratory=[])
    marked_findings = replace(found, verdicts=[marked, plain])
    page = " ".join(" ".join(Page(html(marked_findings, memory)).texts).split())
    assert page.count("(exploratory)") == 1 and page.count(f"Exploratory: {marked.exploratory[0]}.") == 1
    headings = [line for line in markdown(marked_findings).splitlines() if "(exploratory)" in line]
    assert headings == [f"## {str(marked.outcome).capitalize()} (exploratory): `{marked.sentence}`"]
    assert marked.exploratory[0] in markdown(marked_findings)
    terminal = io.StringIO()
    for part in verdicts([marked, plain]):
        Console(width=600, file=terminal).print(part)
    assert terminal.getvalue().count("(exploratory)") == 1 and marked.exploratory[0] in terminal.getvalue()
    submission = open_submission(
        memory, "marked", grid_text="", trials=[submitted(t) for t in found.plan.trials], left_out=[], environment={}
    )
    report = Report("page", [marked.to_json(), plain.to_json()])
    note = grid_content("marked", [submission], {}, False, report).tags["mlflow.note.content"]
    assert note.count(f"- **{marked.outcome}** (exploratory): `{marked.sentence}`") == 1
    assert note.count("(exploratory)") == 1
    outcomes = [row[3] for row in verdict_rows([marked, plain])]
    assert outcomes == [f"**{marked.outcome}, exploratory**", f"**{plain.outcome}**"]


def test_all_numbers_of_twenty_methods_on_twenty_tasks_with_ten_seeds_take_seconds(
    tmp_path: Path, registry: Registry
) -> None:
    """All of a report but its drawings: 380 verdicts, tables with their tests, and what is said over all tasks."""
    methods, tasks = [f"m{i}" for i in range(20)], [f"t{i}" for i in range(20)]
    claims = [{"better": "m0", "than": method, "on": task} for method in methods[1:] for task in tasks]
    plan = made_plan(claims, tasks=tasks, methods=methods, registry=registry)
    _, memory = findings(plan, ended(plan, scores(plan)), tmp_path)
    spent = []  # the least of some counts: other work on the machine adds to the CPU time of this one
    while len(spent) < 2 or (min(spent) >= 5.0 and len(spent) < 6):
        started = time.process_time()
        found = gather(plan, memory, registry)
        section = overall(found)
        spent.append(time.process_time() - started)
    assert min(spent) < 5.0
    assert len(found.verdicts) == 380 and [len(table.rows) for table in found.tables] == [20] * 20
    assert all(row.p is not None for table in found.tables for row in table.rows[1:] if row.label != "m0")
    shown = " ".join([*(table.title for table in section.tables), *(figure.title for figure in section.figures)])
    for part in ("Aggregates", "Failure rates", "Performance profile", "Ranks over tasks"):
        assert part in shown, part


@pytest.mark.slow
def test_two_thousand_runs_are_small_and_soon_there(tmp_path: Path) -> None:
    plan = made_plan(
        [{"better": "m0", "than": "m1"}, {"wins": "m2", "over": ["m3"], "at_least": 2}],
        tasks=[f"task{index}" for index in range(20)],
        methods=[f"m{index}" for index in range(10)],
        seeds=10,
    )
    assert len(plan.trials) == 2000
    _, memory = findings(plan, ended(plan, scores(plan)), tmp_path)
    write_curves(plan, memory, 60, ("a", "b", "c", "d", "e", "f"))
    spent = []
    for _ in range(2):  # the lesser of two counts: other work on the machine adds to the CPU time of this one
        started = time.process_time()
        file = write_report(plan, memory, Registry())
        spent.append(time.process_time() - started)
    assert file.stat().st_size < 5_000_000
    assert min(spent) < 10
    print(f"{file.stat().st_size / 1e6:.2f} MB, {spent} s of CPU")
    check_harmless(file.read_text())
