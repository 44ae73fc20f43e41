"""The pages: every grid plans, every class runs, every link leads somewhere."""

import csv
import doctest
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import papers
import pytest
import scipy
from judging.made import ended, made_plan
from ruamel.yaml import YAML
from support import harness, run

from harness.judging.verdicts import Outcome, judge
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.recording.records import Result
from harness.recording.results import Results
from harness.registry import Registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The code of one language on a page."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return found


def plugin_of(page: str, folder: Path) -> Path:
    """The classes of a page, in one file."""
    file = folder / "plugin.py"
    file.write_text("\n\n".join(blocks(page, "python")))
    return file


WRITTEN = [str(page.relative_to(DOCS)) for page in sorted([*DOCS.glob("*.md"), *(DOCS / "methods").glob("*.md")])]
"""The pages that are written by hand: all but those of `papers/`."""

GRIDS = [(page, n) for page in WRITTEN for n, b in enumerate(blocks(page, "yaml")) if b.startswith("name:")]


@pytest.mark.parametrize(("page", "number"), GRIDS)
def test_every_grid_plans(page: str, number: int, tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(blocks(page, "yaml")[number])
    registry = Registry([plugin_of(page, tmp_path)] if blocks(page, "python") else [])
    plan = build_plan(load_grid(file, [], registry), registry)
    assert plan.trials and not plan.left_out


def test_the_pages_have_grids() -> None:
    pages = [page for page, _ in GRIDS]
    assert pages.count("grids.md") >= 6
    assert {"methods/baselines.md", "methods/planted.md"} <= set(pages)


def test_the_fork_of_the_grids_page_branches(tmp_path: Path, registry: Registry) -> None:
    (fork,) = (block for block in blocks("grids.md", "yaml") if "start:" in block)
    (tmp_path / "grid.yaml").write_text(fork)
    plan = build_plan(load_grid(tmp_path / "grid.yaml", [], registry), registry)
    trunk = {trial.hash for trial in plan.trials if trial.method_label == "adamw"}
    branches = [trial for trial in plan.trials if trial.method_label != "adamw"]
    starts = [required for trial in branches for required in trial.spec.requires if required.path == "start"]
    assert len(starts) == len(branches) == 2 * len(trunk) and {required.hash for required in starts} == trunk
    assert all(trial.stage == 1 for trial in branches)


def test_the_equation_of_the_physics_page_is_solved(tmp_path: Path) -> None:
    """Its reference solves it by hand: u_t = -π² u = u_xx. Untrained networks have an error of about one."""
    file = plugin_of("physics.md", tmp_path)
    told = harness("trial", "heat/pinn", "adamw", "--plugin", file, "--results", tmp_path)
    (error,) = re.findall(r"^test/relative_l2 (\S+)$", told, re.MULTILINE)
    assert float(error) < 0.1, told


RULES = [line for block in blocks("methods/oui_screening.md", "yaml") for line in block.splitlines()]

SCREENED = """
name: oui-screening
tasks: [cartpole/ppo, acrobot/ppo]
methods: [adam]
seeds: 2
recipes: [{set: {env_steps: 4096, lr: {each: [1e-5, 1e-3]}}}]
"""


@pytest.mark.parametrize("rule", RULES)
def test_every_screening_rule_plans(rule: str, tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "grid.yaml").write_text(SCREENED + rule)
    plan = build_plan(load_grid(tmp_path / "grid.yaml", [], registry), registry)
    assert plan.screening is not None and len(plan.trials) == 8


def test_the_scheduler_of_the_screening_page_is_one() -> None:
    from ray.tune.schedulers import TrialScheduler

    made: dict[str, object] = {}
    exec(blocks("methods/oui_screening.md", "python")[0], made)
    assert isinstance(made["scheduler"], TrialScheduler) and made["scheduler"].reasons == {}


@pytest.mark.slow
def test_the_rules_of_the_screening_page_are_compared(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(SCREENED)
    harness("run", tmp_path / "grid.yaml", "--results", tmp_path / "results")
    code = blocks("methods/oui_screening.md", "python")[1]
    wide = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=wide)
    assert "early_return + oui" in done.stdout


def asked_for(command: str) -> list[tuple[str, str]]:
    """What every `harness COMMAND` in the code of the written pages is given, with the page."""
    return [
        (page, given.split("#")[0].strip())
        for page in WRITTEN
        for given in re.findall(rf"(?m)^(?:    )?harness {command} (.+)", (DOCS / page).read_text())
    ]


@pytest.mark.parametrize(("page", "given"), asked_for("trial"))
def test_every_trial_of_a_page_plans(page: str, given: str, tmp_path: Path) -> None:
    words = shlex.split(given)
    if words[0].startswith("lunarlander") and not importlib.util.find_spec("Box2D"):
        pytest.skip("needs Box2D: pip install 'training-harness[box2d]'")
    sets = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
    (tmp_path / "grid.yaml").write_text(
        json.dumps({"name": "one", "tasks": words[:1], "methods": [words[1]], "seeds": 1})
    )
    registry = Registry([plugin_of(page, tmp_path)] if "--plugin" in words else [])
    assert build_plan(load_grid(tmp_path / "grid.yaml", sets, registry), registry).trials


@pytest.mark.parametrize(("page", "given"), [(p, g) for p, g in asked_for("run") if g.startswith("grids/")])
def test_every_grid_that_a_page_runs_is_there(page: str, given: str) -> None:
    assert (ROOT / shlex.split(given)[0]).is_file()


@pytest.mark.parametrize(
    ("page", "asked"),
    [
        ("add-a-method.md", ["digits/mlp", "sign_gradient + sgd"]),
        ("add-a-method.md", ["digits/mlp", "snake + triangle + adamw"]),
        ("add-a-method.md", ["digits/federated", "fed_sign", "--set", "recipe.rounds=3"]),
        pytest.param("add-a-method.md", ["poisson/pinn", "norm_decay + adamw"], marks=pytest.mark.slow),
        ("add-a-task.md", ["moons/mlp", "adamw"]),
        ("add-a-probe.md", ["digits/mlp", "adamw", "--probe", "dead_units"]),
        ("methods/federated_baselines.md", ["digits/federated", "fed_equal", "--set", "recipe.rounds=3"]),
    ],
)
def test_the_classes_run(page: str, asked: list[str], tmp_path: Path) -> None:
    length = [] if "--set" in asked else ["--set", "recipe.steps=20"]
    given = ["--plugin", plugin_of(page, tmp_path), "--results", tmp_path / "r"]
    shown = harness("trial", *asked, *given, *length)
    assert "test/" in shown
    assert "dead_units" not in asked or "probe/dead_units/mean" in shown


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), [("add-a-method.md", "sign_gradient"), ("add-a-task.md", "moons/mlp")])
def test_the_classes_pass_the_suite(page: str, name: str, tmp_path: Path) -> None:
    shown = harness("describe", name, "--check", "--plugin", plugin_of(page, tmp_path))
    assert "FAIL" not in shown and "  ok  " in shown


@pytest.mark.parametrize(
    ("drifts", "outcome"),
    [
        ([0.1, -0.1, 0.05, 0.0, 0.15], Outcome.SUPPORTED),
        ([0.3, -0.4, 0.25, 0.5, -0.3], Outcome.CONTRADICTED),
        ([0.1, -0.1, 0.05, 0.0, 0.25], Outcome.UNDECIDED),
        ([0.1, -0.1, 0.05, 0.0], Outcome.UNDECIDED),
    ],
)
def test_the_kind_of_claim_is_judged(drifts: list[float], outcome: Outcome, tmp_path: Path) -> None:
    registry = Registry([plugin_of("claims.md", tmp_path)])
    plan = made_plan([{"steady": "a", "within": 0.2}], methods=["a"], seeds=5, registry=registry)
    results = ended(plan, {"t · a": np.ones(5)})
    for trial, drift in zip(plan.trials, drifts, strict=False):  # a seed without the probe is not measured
        results[trial.hash].metrics["probe/drift"] = drift
    (verdict,) = judge(plan, results, registry)
    assert verdict.outcome is outcome and verdict.sentence == "a stays within 0.2"
    if len(drifts) == 5:
        (part,) = verdict.parts
        assert part.differences == pytest.approx([0.2 - abs(drift) for drift in drifts])


KINDS = re.findall(r"(?m)^\| (?:`\w+`)? \| `(\{.*?\})` \|", (DOCS / "claims.md").read_text())
"""The examples of the table of kinds."""


def test_the_table_of_kinds_has_them_all_and_its_examples_are_claims(registry: Registry) -> None:
    kinds = {item.name for item in registry.items("claim")}
    found = []
    for text in KINDS:
        fields = YAML(typ="safe", pure=True).load(text)
        (kind,) = kinds & set(list(fields)[:1])
        registry.build_claim(kind, fields).check()
        found.append(kind)
    assert set(found) == kinds


@pytest.mark.parametrize("page", [page.name for page in sorted(DOCS.glob("**/*.md")) if ">>>" in page.read_text()])
def test_the_examples_print_what_they_say(page: str) -> None:
    (file,) = DOCS.rglob(page)
    failed, tried = doctest.testfile(str(file), module_relative=False, encoding="utf-8")
    assert tried and not failed


COMMANDS = sorted(
    {name for page in DOCS.rglob("*.md") for name in re.findall(r"(?m)(?:^|`)harness ([a-z]+)", page.read_text())}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    from harness.cli import app

    assert command in {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}


def links(page: Path) -> list[str]:
    """Where a page leads inside of the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    return [link for link in found if "://" not in link and not link.startswith("#")]


def options(command: str) -> set[str]:
    """What a command of `harness` takes, by long and short name."""
    from typer.main import get_command

    from harness.cli import app

    group: Any = get_command(app)
    return {name for option in group.commands[command].params for name in option.opts} | {"--help"}


GIVEN = sorted(
    {
        (command, option)
        for page in (*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
        for command, words in re.findall(r"(?m)(?:^ *|`)harness ([a-z]+)([^`\n#]*)", page.read_text())
        for option in re.findall(r" (--?[a-z][a-z-]*)", words)
    }
)


@pytest.mark.parametrize(("command", "option"), GIVEN)
def test_every_option_of_a_page_s_commands_exists(command: str, option: str) -> None:
    assert option in options(command)


@pytest.mark.parametrize(
    "page",
    [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "clusters" / "README.md"],
    ids=lambda page: page.name,
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        assert (page.parent / link.split("#")[0]).exists(), link


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material")):
        pytest.skip("needs mkdocs-material: pip install 'training-harness[dev]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "grids" / "index.html").exists()


TINY = """
name: tiny
tasks: [digits/mlp]
methods: [sgd, placebo + sgd, handicap + sgd]
seeds: 3
recipes: [{set: {steps: 30, lr: 0.1}}]
claims:
  - {better: sgd, than: handicap + sgd, by: test/loss, assume: normal}
  - {better: placebo + sgd, than: sgd, by: test/loss}
  - {value: test/accuracy, of: sgd, above: 0.2}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str], Result]]:
    """The pages of a grid that was run, and its results by cell and seed."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "grid.yaml").write_text(TINY)
    registry, memory, docs = Registry(), Results(folder / "results"), folder / "docs"
    docs.mkdir()
    plan = build_plan(load_grid(folder / "grid.yaml", [], registry), registry)
    found = {(t.cell.partition(" · ")[2], t.spec.seed_label): run(registry, t.spec, memory.folder) for t in plan.trials}
    readings = docs / "papers" / "readings"
    readings.mkdir(parents=True)
    (readings / "tiny.md").write_text("What a person thinks of it.\n")
    papers.write("tiny", papers.look("tiny", memory, registry, folder / "grid.yaml"), memory, docs)
    return docs, found


def rows_of(page: str) -> list[list[str]]:
    """The cells of all tables of a page."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines() if row.startswith("|")]


def test_the_csv_file_of_a_paper_is_its_results(tiny: tuple[Path, dict[tuple[str, str], Result]]) -> None:
    docs, found = tiny
    rows = list(csv.DictReader((docs / "papers" / "tiny.csv").open()))
    assert [(row["cell"], row["seed"]) for row in rows] == sorted(found)
    for row in rows:
        result = found[row["cell"], row["seed"]]
        assert (row["trial"], row["status"], row["code"]) == (result.hash, "finished", result.code)
        for name in ("test/loss", "val/accuracy", "time/cpu_seconds"):
            assert float(row[name]) == pytest.approx(result.metrics[name], rel=1e-5)


def test_a_paper_s_page_has_the_numbers_of_its_results(tiny: tuple[Path, dict[tuple[str, str], Result]]) -> None:
    docs, found = tiny
    page = (docs / "papers" / "tiny.md").read_text().replace("\xa0", " ")
    losses = {cell: [found[cell, str(n)].metrics["test/loss"] for n in range(3)] for cell, _ in found}
    for cell, values in losses.items():
        half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(values)
        (row,) = [row for row in rows_of(page) if row[0] == cell]
        mean, _, bound = row[2].partition(" ± ")
        assert float(mean) == pytest.approx(np.mean(values), rel=1e-3) and row[1] == "3/3"
        assert float(bound) == pytest.approx(half, rel=0.06)
    gain = np.mean(np.subtract(losses["handicap + sgd"], losses["sgd"]))
    (part,) = [row for row in rows_of(page) if row[:2] == ["1", "digits/mlp"]]
    assert float(part[2].split()[0]) == pytest.approx(gain, rel=1e-2) and part[4] == "3"
    cpu = sum(result.metrics["time/cpu_seconds"] for result in found.values())
    assert "9 trials: 9 finished" in page and f"{cpu:.0f} seconds of CPU time" in page
    assert "2 controls as planted" in page and "FAILED" not in page
    assert "What a person thinks of it." in page
    (picture,) = re.findall(r"\((tiny-.*\.svg)\)", page)
    assert ElementTree.parse(docs / "papers" / picture).getroot().tag.endswith("svg")


def test_the_summary_and_the_methods_are_filled_from_what_was_written(
    tiny: tuple[Path, dict[tuple[str, str], Result]],
) -> None:
    docs, _ = tiny
    summary = papers.overview(docs)
    assert "[tiny](papers/tiny.md)" in summary and "1 claim: 1 undecided; 2 controls as planted." in summary
    assert summary.count("not run yet") == len(papers.PAPERS)
    assert summary.count("| 2605.10161 | OUIDecay is best in 7 of 8 settings") == 2
    (docs / "methods").mkdir()
    page = docs / "methods" / "sgd.md"
    marked = "<!-- result of {} -->\nold\n<!-- end of result -->\n"
    page.write_text("before\n" + marked.format("tiny") + marked.format("refresh"))
    papers.fill(docs)
    filled = page.read_text()
    papers.fill(docs)
    assert filled == page.read_text() and filled.startswith(
        "before\n<!-- result of tiny -->\n[tiny](../papers/tiny.md): 1 claim"
    )
    (docs / "papers" / "readings" / "tiny.md").write_text("Thought over.\n")
    papers.fill(docs)
    read = (docs / "papers" / "tiny.md").read_text()
    assert read.count("## Reading\n\nThought over.\n") == 1 and "What a person" not in read
    assert "old" not in filled and "refresh.yaml`: not run yet" in filled


def test_a_page_knows_how_many_trials_it_tells_of(tiny: tuple[Path, dict[tuple[str, str], Result]]) -> None:
    docs, found = tiny
    assert papers.ended_on_page("tiny", docs) == len(found) and papers.ended_on_page("refresh", docs) == 0


def test_every_proxy_has_a_title_and_every_mark_a_proxy() -> None:
    assert set(papers.PAPERS) == {file.stem for file in (ROOT / "grids" / "proxies").glob("*.yaml")}
    marked = [
        name for page in (DOCS / "methods").glob("*.md") for _, name, _ in papers.MARKED.findall(page.read_text())
    ]
    assert set(marked) <= set(papers.PAPERS)


def test_a_control_that_failed_is_shouted(tiny: tuple[Path, dict[tuple[str, str], Result]]) -> None:
    told = [{"kind": "**FAILED NULL CONTROL**", "outcome": "supported"}, {"kind": "claim", "outcome": "supported"}]
    assert papers.told(told) == "1 claim: 1 supported; **1 of 1 controls FAILED**."
    docs, _ = tiny
    verdicts = json.loads((docs / "papers" / "tiny.json").read_text())["verdicts"]
    assert [verdict["control"] for verdict in verdicts] == ["positive control", "null control", "claim"]


@pytest.mark.parametrize("name", ["papers_observables", "papers_tables"])
def test_the_examples_of_the_pages_code_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


EXAMPLES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("harness", "methods", "tasks")
    for file in sorted((ROOT / package).rglob("*.py"))
    if ">>>" in file.read_text()
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_docstrings_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


CONTROLS = ("baselines", "planted")
"""Pages of methods that others are compared with: no grid asks about these."""


def test_every_method_has_a_result() -> None:
    pages = {page.stem: page.read_text() for page in (DOCS / "methods").glob("*.md")}
    assert all(re.search(r"<!-- result of \w+ -->", text) for name, text in pages.items() if name not in CONTROLS)


def test_every_method_has_a_page(registry: Registry) -> None:
    pages = {page.stem: page.read_text() for page in (DOCS / "methods").glob("*.md")}
    headed = "\n".join(line for text in pages.values() for line in text.splitlines() if line.startswith(("#", "| `")))
    for item in registry.items("method"):
        assert item.name in pages or re.search(rf"`{item.name}\b", headed), (
            f"{item.name}: no page, heading or table row"
        )


def test_pages_of_papers_are_written_from_the_command_line(tmp_path: Path) -> None:
    """The folder docs/methods does not pass for the package `methods`."""
    command = [sys.executable, str(DOCS / "papers.py"), "weight_decay_sweep", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2
    assert "papers.py: error: " in done.stderr, "its own answer: there are no runs, or no data"
