"""A claim is frozen with the plan that first carries it; `compare` tells two results folders apart."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from judging.made import ended, made_plan, several_trials
from support import harness

from harness.judging.compare import Change, Side, compare, find_side, metric_of, table
from harness.judging.history import history
from harness.judging.telling import doubts
from harness.judging.verdicts import Outcome, judge_folder
from harness.planning.grid import load_grid
from harness.planning.plan import Plan, build_plan
from harness.recording.attempts import end_without_result
from harness.recording.grids import SubmittedTrial, open_submission
from harness.recording.records import RecordsError, Result, Status
from harness.recording.results import Results
from harness.registry import Registry
from harness.running.deciding import _open
from harness.running.driver import Options, submitted

WARM = os.environ.get("HARNESS_CACHE") or str(Path.home() / ".cache" / "harness")
"""The cache of the session: a command of its own need not index the registries again."""
GRID = """
name: frozen
tasks: [digits/mlp]
methods: [adamw, balanced_adam]
seeds: {seeds}
recipes: [{{set: {{steps: 20}}}}]
{claims}
"""
CLAIM = "claims: [{better: balanced_adam, than: adamw}]\n"
Score = Callable[[str, int], float]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


class Folder:
    """A results folder in which grids are submitted and end at once."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder, self.registry = folder, registry
        self.memory = Results(folder / "results")

    def plan(self, claims: str, seeds: int) -> Plan:
        file = self.folder / "grid.yaml"
        file.write_text(GRID.format(seeds=seeds, claims=claims))
        return build_plan(load_grid(file, [], self.registry), self.registry)

    def submit(self, plan: Plan) -> None:
        trials = [
            {
                "hash": t.hash,
                "spec": {"task": t.spec.task, "seed": t.spec.seed, "recipe": t.spec.recipe},
                "task_label": t.task_label,
                "method_label": t.method_label,
                "cell": t.cell,
                "seed": t.spec.seed_label,
                "code": t.code,
            }
            for t in plan.trials
        ]
        open_submission(
            self.memory, plan.name, grid_text=plan.grid_text, trials=trials, left_out=[], environment={"git": {}}
        )

    def finish(self, plan: Plan, score: Score = lambda method, seed: (method == "balanced_adam") + 0.01 * seed) -> None:
        for trial in plan.trials:
            if self.memory.trial(trial.hash).result() is None:
                value = score(trial.method_label, trial.spec.seed["init"])
                result = Result(
                    trial.hash,
                    Status.FINISHED,
                    trial.code,
                    {"test/accuracy": value, "val/accuracy": value},
                    weights=str(value),
                    ended=time.time(),
                )
                end_without_result(self.memory.folder, result, trial.spec.to_json())

    def reasons(self, plan: Plan) -> Sequence[str]:
        (verdict,) = judge_folder(plan, self.memory, self.registry)
        assert verdict.outcome is Outcome.SUPPORTED
        return verdict.exploratory


@pytest.fixture
def made(tmp_path: Path, registry: Registry) -> Folder:
    return Folder(tmp_path, registry)


def test_a_claim_written_before_the_run_is_confirmatory(made: Folder) -> None:
    plan = made.plan(CLAIM, 6)
    made.submit(plan)
    made.finish(plan)
    made.submit(plan)
    assert not made.reasons(plan)


def test_a_claim_added_after_the_run_is_exploratory(made: Folder) -> None:
    before = made.plan("", 6)
    made.submit(before)
    made.finish(before)
    plan = made.plan(CLAIM, 6)
    assert made.reasons(plan) == ["it was added or changed after the last run of the grid"]
    made.submit(plan)
    assert made.reasons(plan) == ["12 of its 12 trials had ended before it was written down"]


@pytest.mark.parametrize("change", [CLAIM + "level: 0.04\n", CLAIM.replace("}]", ", margin: 0.5}]")])
def test_a_changed_claim_is_exploratory(made: Folder, change: str) -> None:
    plan = made.plan(CLAIM, 6)
    made.submit(plan)
    made.finish(plan)
    assert "added or changed" in made.reasons(made.plan(change, 6))[0]


def test_a_grid_extended_after_a_look_is_exploratory_unless_it_said_so(made: Folder) -> None:
    plan = made.plan(CLAIM, 6)
    made.submit(plan)
    made.finish(plan)
    more = made.plan(CLAIM, 8)
    made.submit(more)
    made.finish(more)
    assert made.reasons(more) == ["4 of its 16 trials were added when results were there"]


def test_an_extension_before_any_result_and_one_that_was_declared_are_confirmatory(made: Folder) -> None:
    made.submit(made.plan(CLAIM, 6))
    more = made.plan(CLAIM, 8)
    made.submit(more)
    made.finish(more)
    assert not made.reasons(more)
    declared = CLAIM + "sequential: {looks: [7, 10]}\nname: declared\n"
    text = GRID.replace("name: frozen\n", "")
    for seeds in (7, 10):
        file = made.folder / "declared.yaml"
        file.write_text(
            text.format(seeds=seeds, claims=declared + "recipes: [{set: {steps: 30}}]\n").replace(
                "recipes: [{set: {steps: 20}}]\n", ""
            )
        )
        plan = build_plan(load_grid(file, [], made.registry), made.registry)
        made.submit(plan)
        made.finish(plan)
        assert not made.reasons(plan)


def test_the_seeds_of_tuning_are_none_of_the_looks(made: Folder) -> None:
    """Three looks at six seeds: with the four seeds of tuning among them they would be others, and so would the claims."""
    tuned = CLAIM + "sequential: {looks: 3}\ntuning: {trials: 2, seeds: 4, over: {lr: {loguniform: [1e-4, 1e-1]}}}\n"
    plan = made.plan(tuned, 6)
    assert {trial.spec.seed["init"] for trial in plan.trials if trial.tuning is not None} == {
        1_000_000 + number for number in range(4)
    }
    made.submit(plan)
    assert history(made.memory, "frozen")[0].claims == {claim.hash for claim in plan.claims.listed}
    made.finish(plan)
    assert not made.reasons(plan)
    assert families(made, plan)[0] == [1]


def families(made: Folder, plan: Plan) -> tuple[list[int], list[float]]:
    """For how many claims each verdict is corrected, and the p-values."""
    verdicts = judge_folder(plan, made.memory, made.registry)
    return [verdict.family for verdict in verdicts], [verdict.p_supported for verdict in verdicts]


def test_a_claim_that_was_dropped_after_a_look_stays_in_the_family(made: Folder) -> None:
    """By hand: 6 seeds, all for the claim: 1/64; times 3 claims. Dropping the other two changes nothing."""
    others = "  - {better: adamw, than: balanced_adam}\n  - {better: adamw, than: balanced_adam, margin: 0.5}\n"
    all_three = made.plan(CLAIM.replace("[", "\n  - ").replace("]", "") + others, 6)
    only = made.plan(CLAIM, 6)
    made.submit(all_three)
    made.finish(all_three)
    assert families(made, all_three)[1][0] == pytest.approx(3 / 64)
    for _ in range(2):
        assert families(made, only) == ([3], [pytest.approx(3 / 64)])
        (verdict,) = judge_folder(only, made.memory, made.registry)
        assert not verdict.exploratory and "corrected for 3 claims, 2 of them asked before" in verdict.reason
        made.submit(only)


def test_what_was_asked_before_keeps_a_claim_open_until_the_next_look(made: Folder) -> None:
    """By hand: at six of twelve seeds 1/64 is below half of .05 alone, and not for seven claims, six of them dropped."""
    looks = "sequential: {looks: [6, 12]}\n"
    others = "".join(f"  - {{better: adamw, than: balanced_adam, margin: {margin}}}\n" for margin in range(6))
    seven = made.plan(CLAIM.replace("[", "\n  - ").replace("]", "") + others + looks, 12)
    only = made.plan(CLAIM + looks, 12)
    made.submit(seven)
    made.finish(replace(only, trials=[trial for trial in only.trials if trial.spec.seed["init"] < 6]))
    made.submit(only)
    (verdict,) = judge_folder(only, made.memory, made.registry)
    assert (verdict.outcome, verdict.family) == (Outcome.UNDECIDED, 7)
    batch = _open(only, made.memory, Options(keep_stale=True), made.registry)
    assert (batch.open, batch.look, len(batch.trials)) == ([only.claims.listed[0].hash], "2 of 2", 12)


def test_the_plan_counts_what_was_asked_before(made: Folder) -> None:
    """By hand: four claims and six seeds, 4/64, is more than .05, however many of them the grid still asks."""
    others = "".join(f"  - {{better: adamw, than: balanced_adam, margin: {margin}}}\n" for margin in (0, 0.1, 0.2))
    four = made.plan(CLAIM.replace("[", "\n  - ").replace("]", "") + others, 6)
    only = made.plan(CLAIM, 6)
    assert doubts(only, made.registry) == []
    made.submit(four)
    made.finish(four)
    (line,) = doubts(only, made.registry, history(made.memory, "frozen"))
    assert line.endswith("6 seeds are too few at 0.05, corrected for 4 claims: 7 would do")


def test_a_claim_that_was_dropped_before_any_result_is_forgotten(made: Folder) -> None:
    made.submit(
        made.plan(CLAIM.replace("[", "\n  - ").replace("]", "") + "  - {better: adamw, than: balanced_adam}\n", 6)
    )
    plan = made.plan(CLAIM, 6)
    made.submit(plan)
    made.finish(plan)
    assert families(made, plan) == ([1], [pytest.approx(1 / 64)])


def test_new_seeds_after_a_look_are_another_attempt(made: Folder) -> None:
    """Each set of seeds that was looked at counts, however often it grew or was submitted."""
    for attempt, expected in ((0, 1), (1, 2), (2, 3)):
        for count in (5, 6) if attempt == 0 else (6, 6):
            seeds = [10 * attempt + number for number in range(count)]
            file = made.folder / "grid.yaml"
            file.write_text(GRID.format(seeds=seeds, claims=CLAIM))
            plan = build_plan(load_grid(file, [], made.registry), made.registry)
            made.submit(plan)
        made.finish(plan)
        assert families(made, plan) == ([expected], [pytest.approx(expected / 64)])


def test_the_hash_survives_the_file(made: Folder) -> None:
    plan = made.plan(CLAIM, 6)
    assert Plan.from_json(plan.to_json()).claims == plan.claims
    other = made.plan(CLAIM + "level: 0.04\n", 6)
    assert other.claims.listed[0].hash != plan.claims.listed[0].hash


# Compare.


def two(tmp_path: Path, registry: Registry, change: Score, seeds: int = 8) -> tuple[Folder, Folder]:
    folders = []
    for name, score in (("one", lambda method, seed: 0.01 * seed), ("other", change)):
        (tmp_path / name).mkdir()
        made = Folder(tmp_path / name, registry)
        plan = made.plan(CLAIM, seeds)
        made.submit(plan)
        made.finish(plan, score)
        folders.append(made)
    return folders[0], folders[1]


def test_compare_says_of_every_cell_what_changed(tmp_path: Path, registry: Registry) -> None:
    one, other = two(tmp_path, registry, lambda method, seed: 0.01 * seed + (method == "adamw") * (0.1 + 0.001 * seed))
    sides = [find_side(str(made.memory.folder), Results(tmp_path)) for made in (one, other)]
    metric = metric_of({"digits/mlp": ("val/accuracy", "max")})
    found = compare(sides[0], sides[1], metric)
    changes = {cell.cell.split(" · ")[1]: cell.change for cell in found.cells}
    assert changes == {"adamw": Change.BETTER, "balanced_adam": Change.IDENTICAL}
    assert found.cells[0].p == 2 * 2**-8
    back = compare(sides[1], sides[0], metric)
    assert back.cells[0].change is Change.WORSE
    assert table(found).row_count == 2
    worst = replace(
        sides[1],
        results={
            h: replace(r, status=Status.DIVERGED) if i == 0 else r for i, (h, r) in enumerate(sides[1].results.items())
        },
    )
    assert compare(sides[0], worst, metric).cells[0].change is not Change.BETTER
    short = replace(sides[1], results=dict(list(sides[1].results.items())[1:]))
    held = compare(sides[0], short, metric).cells[0]
    assert (held.change, held.reason) == (Change.HELD, "1 of 8 pairs have no score")


def test_trials_that_share_a_seed_are_compared_as_one() -> None:
    """Eight initial weights with three splits each, where the effect hangs on the weights alone: eight differences."""
    plan = several_trials(made_plan(methods=("a",), seeds=8), 3)
    trials = [SubmittedTrial(**submitted(trial)) for trial in plan.trials]
    effect = np.repeat([0.1, 0.2, -0.05, 0.3, 0.4, 0.5, 0.6, 0.7], 3)
    sides = [Side("s", trials, ended(plan, {"t · a": scores})) for scores in (np.zeros(24), effect)]
    weights = [replace(side, results={h: replace(r, weights=h) for h, r in side.results.items()}) for side in sides]
    (cell,) = compare(weights[0], weights[1], lambda task: ("test/accuracy", "max")).cells
    assert cell.paired is not None and (cell.paired.n, cell.paired.wins) == (8, 7)
    assert cell.p == pytest.approx(2 * 2 / 2**8), "of 256 sign patterns two have a mean as large"


@pytest.mark.parametrize("side", ["x" * 300, f"{'x' * 300}:frozen"])
def test_compare_refuses_a_name_that_no_folder_can_have(side: str, tmp_path: Path, registry: Registry) -> None:
    one, _ = two(tmp_path, registry, lambda method, seed: 0.01 * seed)
    with pytest.raises(RecordsError, match=r"found 'x+(:frozen)?', allowed: a grid of .*\(frozen\), or FOLDER:GRID"):
        find_side(side, one.memory)


def test_compare_knows_the_grids_that_the_folder_knows(tmp_path: Path, registry: Registry) -> None:
    one, _ = two(tmp_path, registry, lambda method, seed: 0.01 * seed)
    begun = one.memory.grid("begun")
    begun.mkdir()  # a driver that was ended before its submission was complete
    assert one.memory.grids() == ["begun", "frozen"]
    with pytest.raises(RecordsError, match=f"{begun}: holds no submission; run the grid first"):
        find_side("begun", one.memory)
    with pytest.raises(RecordsError, match="with 2 grids, allowed: one of them"):
        find_side(str(one.memory.folder), one.memory)


def test_compare_on_the_command_line(tmp_path: Path, registry: Registry) -> None:
    one, other = two(tmp_path, registry, lambda method, seed: 0.01 * seed - 0.1 - 0.001 * seed)
    said = harness("compare", one.memory.folder, f"{other.memory.folder}:frozen", HARNESS_CACHE=WARM)
    assert said.count("worse") == 2
    refused = harness("compare", "frozn", "frozen", "--results", one.memory.folder, status=2, HARNESS_CACHE=WARM)
    assert "found 'frozn'" in refused and "did you mean 'frozen'?" in refused
    with pytest.raises(RecordsError, match="with --direction"):
        metric_of({}, by="probe/x")("t")
    grid = one.folder / "grid.yaml"
    planned = harness("plan", grid, "--set", "seeds=4", "--results", one.memory.folder, HARNESS_CACHE=WARM)
    assert "4 seeds are too few at 0.05, corrected for 1 claim: 5 would do" in " ".join(planned.split())
