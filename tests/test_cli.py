"""The command line: what it answers to bad input, and what it prints."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import unicodedata
from importlib.metadata import version
from pathlib import Path

import pytest
from planning.malformed import MALFORMED, Malformed
from support import command, harness, plugin, write_grid

from harness.cli import main
from harness.commands.shared import RESULTS, browse, console
from harness.foreground import _progress, plan_trial
from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.planning.reading import read_name
from harness.recording.attempts import Attempt, hold
from harness.recording.grids import open_submission, submissions
from harness.recording.records import RecordsError
from harness.recording.results import Results
from harness.registry import Registry
from harness.running.driver import submitted
from harness.running.stopping import stop_local
from harness.training.trial import run_trial

LIGHT = [case for case in MALFORMED if not case.heavy][::3]


@pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)
def test_a_malformed_grid_starts_nothing(case: Malformed, tmp_path: Path) -> None:
    file = case.write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    sets = [argument for override in case.overrides for argument in ("--set", override)]
    asked = command("run", file, "--results", tmp_path / "results", *sets)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert "grid.yaml" in line or "--set" in line or case.file in line
    assert case.field in line
    for part in case.says:
        assert part in line
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'mlflow', 'numpy', 'scipy', 'pydantic'): sys.modules[name] = None\n"
        "from harness.cli import app\n"
        "app(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Runs what is not done of a grid" in done.stdout


def test_no_line_of_the_help_is_cut() -> None:
    assert "..." not in harness("--help").replace("COMMAND [ARGS]...", "")


def test_the_next_command_has_the_options_of_this_one(tmp_path: Path) -> None:
    mine = plugin(tmp_path, '@register_method("mine")\nclass Mine(Method):\n    """Mine."""\n')
    grid = tmp_path / "grid.yaml"
    grid.write_text("name: mine\ntasks: [digits/mlp]\nmethods: [mine]\nseeds: 1\n")
    given = [str(grid), "--plugin", str(mine), "--set", "seeds=[3, 4]", "--results", str(tmp_path / "r")]
    (line,) = [line for line in harness("plan", *given).splitlines() if line.startswith("Next: ")]
    assert shlex.split(line.removeprefix("Next: ")) == ["harness", "run", *given]


@pytest.mark.parametrize(
    ("tracking", "results", "says"),
    [
        (None, RESULTS, "harness ui"),
        (None, Path("a b"), "harness ui --results 'a b'"),
        ("sqlite:///runs.db", RESULTS, "harness ui --tracking sqlite:///runs.db"),
        ("postgresql+psycopg2://db/runs", Path("r"), "harness ui --tracking postgresql+psycopg2://db/runs --results r"),
        ("https://me:hidden@mlflow", RESULTS, "open https://mlflow in a browser"),
    ],
)
def test_where_every_run_is_shown(tracking: str | None, results: Path, says: str) -> None:
    """A server has pages of its own."""
    assert browse(tracking, results) == says


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("160", 160), (None, 100), ("wide", 100), ("0", 100)])
def test_what_is_piped_is_as_wide_as_asked_for(
    columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    console().print("x" * 800)
    assert len(capsys.readouterr().out.splitlines()[0]) == width


def test_no_text_of_a_grid_steers_the_terminal(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    because = r'"[/red] \e[2J\e]0;mine\a \x9b1A <b>"'
    grid.write_text(
        "name: hostile\ntasks: [digits/mlp]\nmethods: [adamw, sgd]\nseeds: 1\n"
        f'leave_out: [{{task: "*", method: sgd, because: {because}}}]\n'
    )
    shown = harness("plan", grid, "--results", tmp_path / "r")
    assert r"[/red] \x1b[2J\x1b]0;mine\x07 \x9b1A <b>" in shown
    assert [c for c in shown if unicodedata.category(c) == "Cc" and c != "\n"] == []


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Before anything is written, and with no traceback."""
    asked = ("trial", "digits/mlp", "adamw", "--set", "resources.gpus=1", "--results", tmp_path)
    told = harness(*asked, status=2, CUDA_VISIBLE_DEVICES="")
    assert "--set: resources.gpus: found 1, allowed: 0; torch sees no GPU here, see harness doctor" in told
    assert "Traceback" not in told
    assert not (tmp_path / "trials").exists()
    told = harness("describe", "adamw", "--check", "--device", "cuda", status=2, CUDA_VISIBLE_DEVICES="")
    assert told == "--device: found 'cuda', allowed: cpu on this machine; see harness doctor\n"


def test_a_grid_whose_trials_are_all_there_can_be_reported(tmp_path: Path) -> None:
    """Nothing is to be run, and yet it is a grid: with a report, and with its runs in MLflow."""
    grid = tmp_path / "grid.yaml"
    grid.write_text("name: copied\ntasks: [digits/mlp]\nmethods: [adamw]\nseeds: 1\nrecipes: [{set: {steps: 5}}]\n")
    results = tmp_path / "results"
    harness("trial", "digits/mlp", "adamw", "--set", "recipe.steps=5", "--results", results)
    shown = harness("run", grid, "--results", results)
    assert (
        f"All of its trials are there already. To show it in MLflow: harness sync copied --results {results}\n" in shown
    )
    assert (results / "grids" / "copied" / "report.html").name in harness("report", "copied", "--results", results)
    assert "copied: 1 " in harness("sync", "copied", "--results", results)
    (results / "grids" / "a-refused-start").mkdir()
    assert "copied: 1 " in harness("sync", "--results", results), "all grids, but for one that has not begun"
    assert "All of its trials" not in harness("run", grid, "--results", results), "once"


def test_claims_that_change_when_all_is_run_are_judged(tmp_path: Path) -> None:
    """The run of a grid that reads otherwise is a submission, so that its report by name has the claims of today."""
    grid, results = tmp_path / "grid.yaml", tmp_path / "results"
    written = "name: later\ntasks: [digits/mlp]\nmethods: [adamw, sgd]\nseeds: 1\nrecipes: [{set: {steps: 5}}]\n"
    grid.write_text(written + "claims: [{better: adamw, than: sgd}]\n")
    for method in ("adamw", "sgd"):
        harness("trial", "digits/mlp", method, "--set", "recipe.steps=5", "--results", results)
    harness("run", grid, "--results", results)
    grid.write_text(written + "claims: [{better: sgd, than: adamw}]\n")
    assert "All of its trials are there already" in harness("run", grid, "--results", results)
    harness("report", "later", "--results", results, "--format", "markdown", "--out", tmp_path / "report.md")
    told = (tmp_path / "report.md").read_text()
    assert "sgd is better than adamw" in told
    assert "adamw is better than sgd" not in told
    assert "of its 2 trials had ended before it was written down" in told
    held = hold(results / "grids" / "later", 1.0)
    grid.write_text(written)
    assert "grid later is being run by another driver" in harness("run", grid, "--results", results, status=3)
    held.release()


def test_list_and_describe() -> None:
    listed = harness("list")
    for name in ("digits/mlp", "cartpole/ppo", "poisson/pinn", "digits/federated", "balanced_adam", "oui"):
        assert name in listed
    alone = harness("list", "probes")
    assert "oui" in alone and "digits/mlp" not in alone
    assert "KIND: found 'probe', allowed: tasks, methods, probes, claims; did you mean" in harness(
        "list", "probe", status=2
    )
    assert harness("--version") == f"harness {version('training-harness')}\n"
    card = harness("describe", "balanced_adam")
    for part in ("beta", "0.95", "owns: betas, optimizer", "arXiv 2601.21739"):
        assert part in card
    refused = harness("describe", "balanced_adan", status=2)
    assert refused.startswith("NAME: found 'balanced_adan', allowed: balanced_adam, ")
    assert refused.endswith(" more (harness list); did you mean 'balanced_adam'?\n")


def test_a_plugin_is_checked(tmp_path: Path) -> None:
    good = plugin(
        tmp_path,
        '''
        @register_method("halves")
        class Halves(Method):
            """Halves every gradient."""

            def before_step(self, state):
                for parameter in state.model.parameters():
                    parameter.grad.mul_(0.5)
        ''',
    )
    shown = harness("describe", "halves", "--check", "--plugin", good)
    assert "checks passed" in shown
    assert "FAIL" not in shown
    assert "resume is exact" in shown


def test_a_hook_without_its_return_is_told_once(tmp_path: Path) -> None:
    forgotten = plugin(
        tmp_path,
        '''
        @register_method("forgotten")
        class Forgotten(Method):
            """Adapts nothing."""

            needs = frozenset({"clients"})

            def adapt(self, model, workload):
                model.eval()
        ''',
    )
    shown = harness("describe", "forgotten", "--check", "--plugin", forgotten, status=1)
    assert "forgotten.adapt returned nothing" in " ".join(shown.split())
    assert "digits/federated: resume is exact (as above)" in shown
    assert "checks failed; what each compares: docs/add-a-method.md" in shown


def test_a_plugin_that_forgets_its_state_is_found_out(tmp_path: Path) -> None:
    forgetful = plugin(
        tmp_path,
        '''
        @register_method("forgets")
        class Forgets(Method):
            """Counts its steps and does not save the count."""

            def before_step(self, state):
                self.steps = getattr(self, "steps", 0) + 1
                for parameter in state.model.parameters():
                    parameter.grad.mul_(1 / self.steps)
        ''',
    )
    shown = harness("describe", "forgets", "--check", "--plugin", forgetful, status=1)
    assert "FAIL  digits/mlp: resume is exact" in shown


def test_a_plugin_that_does_not_load_is_refused(tmp_path: Path) -> None:
    """Asked for by name, it is needed: with its file, what is wrong and where; of a wrong name the nearest right one."""
    broken = plugin(tmp_path, "import a_module_that_is_not_there\n")
    line = broken.read_text().splitlines().index("import a_module_that_is_not_there") + 1
    shown = harness("list", "--plugin", broken, status=2)
    assert f"--plugin: {broken} does not load (ModuleNotFoundError: " in shown and f", line {line})" in shown
    shown = harness("list", "--plugin", broken.with_name("plugins.py"), status=2)
    assert "found no such file; did you mean 'plugin.py'?, allowed: a Python file" in shown
    assert "found a folder, allowed: a Python file" in harness("list", "--plugin", tmp_path, status=2)


def test_a_collision_is_an_error(tmp_path: Path) -> None:
    twice = plugin(tmp_path, '@register_method("adamw")\nclass Mine(Method):\n    """Another."""\n')
    assert (
        "method 'adamw' is registered twice: by training-harness:methods.baselines and by plugin plugin.py"
        in harness("list", "--plugin", twice, status=2)
    )


def test_the_cpus_of_a_cluster_are_its_own(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, "name: cpus\ntasks: [digits/mlp]\nmethods: [adamw]\nseeds: 1\n")
    told = harness("run", grid, "--address", "auto", "--cpus", 2, "--results", tmp_path / "results", status=2)
    assert told.startswith("--cpus: found with --address, allowed: without it")
    assert not (tmp_path / "results").exists()


def test_impossible_resources_are_refused_before_anything_starts(tmp_path: Path) -> None:
    grid = write_grid(
        tmp_path,
        """
        name: large
        tasks: [digits/mlp]
        methods: [adamw]
        seeds: 1
        resources: {cpus: 4096}
        """,
    )
    shown = harness("run", grid, "--results", tmp_path / "results", status=2)
    assert "resources.cpus: found 4096, allowed: at most" in shown
    assert not (tmp_path / "results").exists()


def test_explain_says_where_values_come_from(tmp_path: Path) -> None:
    grid = write_grid(
        tmp_path,
        """
        name: explained
        tasks: [digits/mlp]
        methods: [adamw]
        seeds: 1
        recipes: [{set: {lr: 1e-2}}]
        """,
    )
    place = ["--results", tmp_path / "results"]
    listed = harness("plan", grid, *place)
    assert "1 new" in listed
    shown = harness("plan", grid, *place, "--explain", "", "--set", "recipe.steps=7")
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert rows["recipe.lr"][1:] == ["0.01", "recipes[0].set.lr"]
    assert rows["recipe.steps"][1:] == ["7", "--set"]


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "a" * 300])
def test_results_that_cannot_be_a_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(RecordsError, match=r"--results: found .*, allowed: a folder"):
        Results(tmp_path / place)


@pytest.mark.parametrize("where", [("run",), ("submit", "--address", "http://127.0.0.1:9")], ids=lambda where: where[0])
def test_an_address_of_mlflow_is_refused_before_anything_starts(where: tuple[str, ...], tmp_path: Path) -> None:
    name, *place = where
    arguments = [name, tmp_path / "grid.yaml", *place, "--results", tmp_path / "r", "--tracking", ""]
    (line,) = harness(*arguments, status=2, RAY_AUTH_TOKEN="token").splitlines()
    assert line.startswith("--tracking: found '', allowed: http://…, https://…, sqlite://…")
    assert not list(tmp_path.iterdir())


def test_a_grid_that_is_stopped_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("tasks: [digits/mlp]\n")
    with pytest.raises(GridError, match=r"name: found nothing, allowed: a text"):
        read_name(tmp_path / "grid.yaml")
    assert not stop_local(Results(tmp_path), "a" * 300)
    assert not submissions(Results(tmp_path), "a" * 300)


@pytest.mark.parametrize("name", ["stop", "sync"])
def test_a_grid_that_never_ran_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "grids" / "digits").mkdir(parents=True)
    shown = harness(name, "digit", "--results", tmp_path, status=2)
    assert shown.strip() == "GRID: found 'digit', allowed: digits; did you mean 'digits'?"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_a_step_that_never_ends(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), _progress(10) as halt:
        assert not halt(1)
        signal.raise_signal(number)
        assert halt(2), "the first one waits for the end of the step"
        signal.raise_signal(number)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_option_beside_the_value_of_its_method(registry: Registry) -> None:
    with pytest.raises(GridError, match=r"method.adamw.beta1: found adamw=1 beside it, allowed: one of the two"):
        plan_trial("digits/mlp", "adamw", 0, [], ["method.adamw=1", "method.adamw.beta1=0.5"], registry)


def test_one_trial_has_one_rank(registry: Registry) -> None:
    with pytest.raises(GridError, match=r"resources.ranks: found 2, allowed: 1"):
        plan_trial("digits/mlp", "adamw", 0, [], ["resources.ranks=2"], registry)


@pytest.mark.parametrize("limit", ["memory=1GiB", "time=10s"])
def test_a_limit_that_would_not_hold_is_refused(limit: str, registry: Registry) -> None:
    name, value = limit.split("=")
    with pytest.raises(GridError, match=rf"resources\.{name}: found '{value}', allowed: without it"):
        plan_trial("digits/mlp", "adamw", 0, [], [f"resources.{limit}"], registry)


def test_a_probe_has_no_negative_cadence(registry: Registry) -> None:
    for name in [item.name for item in registry.items("probe")]:
        with pytest.raises(ValueError, match=r"every: found -1, must not be negative"):
            registry.build_probe(name, {"every": -1})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    """A folder with a grid of one trial, and the results of a run of it."""
    folder = tmp_path_factory.mktemp("ran")
    text = "name: one\ntasks: [digits/mlp]\nmethods: [adamw]\nseeds: 1\nrecipes: [{set: {steps: 20, evaluate_every: 10}}]\n"
    plan = build_plan(load_grid(write_grid(folder, text), [], registry), registry)
    memory, (trial,) = Results(folder / "results"), plan.trials
    open_submission(
        memory, plan.name, grid_text=text, trials=[submitted(trial)], left_out=[], environment={"python": "3.11"}
    )
    with Attempt(memory.folder, trial.hash, trial.spec.to_json(), trial.code) as attempt:
        run_trial(trial.spec, registry, attempt)
    return folder


COMMANDS = {"plan": ("GRID",), "run": ("GRID",), "report": ("GRID",), "compare": ("one", "one")}
READ = {
    "result.json": {"plan": 3, "run": 3, "report": 3, "compare": 2},
    "1/commit.json": {
        "plan": 0,
        "run": 0,
        "report": 3,
        "compare": 0,
    },  # of a trial that is done, the curves alone need it
    "1/chunk-00000.jsonl": {"plan": 0, "run": 0, "report": 3, "compare": 0},
}
"""How a command ends if a file is damaged."""


@pytest.mark.chaos
@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_is_no_traceback(
    ran: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    (trial,) = (tmp_path / "results" / "trials").iterdir()
    (trial / name).write_bytes((trial / name).read_bytes()[:-5])
    for asked, arguments in COMMANDS.items():
        given = [str(tmp_path / "grid.yaml") if word == "GRID" else word for word in arguments]
        monkeypatch.setattr(sys, "argv", ["harness", asked, *given, "--results", str(tmp_path / "results")])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == READ[name][asked], asked
        if end.value.code:
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{trial / name}: found damaged content (" in line
            assert line.endswith(f"delete {trial}, and the next run computes this trial anew")


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metrics", "x"),
        ("metrics", {"test/accuracy": "high"}),
        ("environment", 3),
        ("steps", "x"),
        ("hash", None),
        ("kept", [1]),
    ],
)
def test_a_result_of_other_types_is_no_traceback(
    field: str,
    value: object,
    ran: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "results" / "trials").glob("*/result.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    arguments = ["compare", "one", "one", "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file}: found damaged content (TypeError: {field}: found " in line


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ("ui --tracking nowhere", 2, "--tracking: found 'nowhere', allowed: http://…"),
        ("ui --tracking http://host:80", 2, "--tracking: http://host:80 is a server; open that address in a browser"),
        ("sync --tracking nowhere", 2, "--tracking: found 'nowhere', allowed: http://…"),
        ("report one --tracking nowhere", 2, "--tracking: found 'nowhere', allowed: http://…"),
        ("report onne", 2, "found 'onne', allowed: a file, one; did you mean 'one'?"),
        ("report GRID --results EMPTY", 2, "report: grid one has not been run into EMPTY. Next: harness run GRID"),
        ("report one --out EMPTY", 2, "--out: found 'EMPTY', which is a folder, allowed: a file to write"),
        ("report one --out EMPTY/a/b.html", 2, "which lies in a folder that does not exist"),
        ("report one --out x.html --tracking http://host", 2, "--tracking: found with --out, allowed: without"),
        ("report one --format csv --tracking http://host", 2, "--tracking: found with --format csv, allowed: without"),
        ("ui --results EMPTY", 2, "make it with: harness run "),
        ("compare one one --by test/acuracy", 2, "--by: found 'test/acuracy', allowed: test/accuracy, "),
        ("compare one one", 0, "Next: harness report one --results "),
        ("plan GRID", 0, "one: 1 trial"),
        ("plan GRID", 0, "Everything is done."),
        ("plan GRID", 0, "Next: harness report GRID --results "),
    ],
)
def test_what_is_told_of_what_was_run(
    arguments: str,
    status: int,
    says: str,
    ran: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = {"GRID": str(ran / "grid.yaml"), "EMPTY": str(tmp_path)}

    def placed(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    words = placed(arguments).split()
    words += [] if "--results" in words else ["--results", str(ran / "results")]
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert end.value.code == status, shown
    assert placed(says) in (shown.err if status else shown.out)
    assert not list(tmp_path.iterdir())


def test_what_went_wrong_inside_is_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr("harness.cli.app", broken)
    with pytest.raises(RuntimeError, match="inside"):
        main()


def test_a_plugin_that_exits_is_left_out(tmp_path: Path) -> None:
    file = plugin(tmp_path, "raise SystemExit(3)")
    (trouble,) = Registry([file]).broken.values()
    assert trouble.startswith("SystemExit: 3, line ")
