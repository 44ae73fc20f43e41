"""Units are handed out in order, short ones together, and the book of what became of them is right."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from ray import cloudpickle
from ray.tune.execution.tune_controller import _get_max_pending_trials

from harness.resources import Resources
from harness.running import scheduling
from harness.running.scheduling import SETTINGS, Infeasible, Outcome, Watch, check_feasible, queue, run_units
from harness.running.search import Hear, ListSearch, StopInVain
from harness.running.stalling import node_type
from harness.running.units import Unit, UnitTrial, stack


class Deaf:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def started(self, hash: str) -> None:
        self.heard.append(("started", hash))

    def moved(self, hash: str, step: int) -> None:
        pass

    def lost(self, hash: str) -> None:
        self.heard.append(("lost", hash))

    def ended(self, hash: str, outcome: str) -> None:
        self.heard.append(("ended", hash, outcome))

    def tick(self) -> None:
        pass


def units(count: int, cell: str = "cell", resources: Resources | None = None) -> list[Unit]:
    return [Unit([UnitTrial(f"{cell}{i}", "{}", "code")], resources or Resources(), cell) for i in range(count)]


def handed_out(listed: Sequence[Unit], watch: Watch, slots: int = 2) -> list[list[str]]:
    search = ListSearch(listed, watch, slots, 1)
    search._spec = {"run": "none", "storage": None, "checkpoint_config": None}
    counts = []
    while not search.is_finished():
        count = search._count(listed[search._next])
        counts.append([unit.name for unit in listed[search._next : search._next + count]])
        search._next += count
    return counts


def told(watch: Watch, hash: str, outcome: str = "finished", seconds: float = 0.5, running: str = "") -> None:
    at_work = [running] if running else []
    watch.report({"ended": {hash: (outcome, seconds)}, "running": at_work, "at": 0, "done": not running})


def test_seeds_that_run_stacked_share_units_and_keep_every_slot_busy() -> None:
    seeds = [replace(unit, stacked=True) for unit in units(23, "a") + units(4, "b")]
    plain = units(3, "c")
    wide = stack([*plain, *seeds], slots=2)
    assert wide[:3] == plain
    assert [(unit.cell, len(unit.trials), unit.stacked) for unit in wide[3:]] == [
        ("a", 8, True),
        ("a", 8, True),
        ("a", 7, True),
        ("b", 4, True),
    ]
    assert sorted(trial.hash for unit in wide for trial in unit.trials) == sorted(u.name for u in [*plain, *seeds])
    assert [len(unit.trials) for unit in stack(seeds, slots=27)] == [1] * 27
    assert {len(unit.trials) for unit in stack(seeds, slots=10)} == {2, 3}
    assert all(Unit.from_json(unit.to_json()) == unit for unit in wide)
    assert [len(process) for process in wide[3].processes] == [8]
    assert [len(process) for process in replace(wide[3], stacked=False).processes] == [1] * 8


def test_unknown_cells_go_one_by_one() -> None:
    listed = units(5)
    assert handed_out(listed, Watch(listed, Deaf(), Outcome())) == [[unit.name] for unit in listed]


def test_short_cells_go_together_and_leave_work_for_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = units(20) + units(4, "other")
    watch = Watch(listed, Deaf(), Outcome())
    told(watch, "cell0", seconds=0.5)
    told(watch, "other0", seconds=100.0)
    parts = handed_out(listed, watch)
    assert [name for part in parts for name in part] == [unit.name for unit in listed], "each once, in order"
    sizes = [len(part) for part in parts]
    assert max(sizes) == 4, "two seconds' worth"
    assert sizes[-4:] == [1, 1, 1, 1], "long ones go alone"
    assert all({name[:4] for name in part} in ({"cell"}, {"othe"}) for part in parts)
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    monkeypatch.setenv(name, SETTINGS[name])
    assert _get_max_pending_trials(ListSearch(listed, watch, 2, 1)) == 8, (
        "as Tune reads it; a search of one's own has 1"
    )


def test_what_tune_saves_does_not_grow_with_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Tuner has 2,000 units at most, and nothing of what it pickles again and again knows them."""
    given: list[int] = []

    def fit(batch: Sequence[Unit], settings: object, watch: Watch, attempt: int, scheduler: object) -> bool:
        given.append(len(batch))
        saved = (ListSearch(batch, watch, 2, attempt), Hear(watch), StopInVain(watch))
        assert sum(len(cloudpickle.dumps(part)) for part in saved) < 1000
        for unit in batch:
            told(watch, unit.name)
        return False

    monkeypatch.setattr(scheduling, "_fit", fit)
    outcome = run_units(units(4001), {}, Deaf())
    assert given == [2000, 2000, 1]
    assert len(outcome.ended) == 4001


def test_the_book_of_a_unit() -> None:
    listed, outcome, deaf = units(3), Outcome(), Deaf()
    watch = Watch(listed, deaf, outcome)
    watch.carry("cell0", ["cell0", "cell1", "cell2"])
    watch.start("cell0")
    told(watch, "cell0", running="cell1")
    told(watch, "cell0", running="cell1")
    assert deaf.heard == [("ended", "cell0", "finished"), ("started", "cell1")], "nothing is told twice"
    assert watch.settled() == {"cell0"}
    assert watch.running() == {"cell1", "cell2"}
    told(watch, "cell1", "interrupted")
    assert watch.settled() == {"cell0"}, "an interrupted trial goes on another time"
    watch.give_up("cell0")
    assert {unit.name for unit in outcome.lost} == {"cell1", "cell2"}
    assert watch.settled() == {"cell0", "cell1", "cell2"}


def test_what_lost_its_worker_does_not_run_until_it_starts_again() -> None:
    listed, deaf = units(2), Deaf()
    watch = Watch(listed, deaf, Outcome())
    watch.carry("cell0", ["cell0", "cell1"])
    watch.start("cell0")
    told(watch, "cell0", running="cell1")
    watch.take_back("cell0")
    watch.take_back("cell0")
    told(watch, "cell0", running="cell1")
    assert deaf.heard[1:] == [("started", "cell1"), ("lost", "cell1"), ("started", "cell1")]


def test_large_requests_come_first() -> None:
    small, large, gpu = units(2, "s"), units(1, "l", Resources(cpus=4)), units(1, "g", Resources(gpus=1))
    assert [unit.cell for unit in queue([*small, *large, *gpu])] == ["g", "l", "s", "s"]


def test_what_fits_nowhere_is_refused() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4, "memory": 8e9}}, {"Alive": False, "Resources": {"CPU": 64}}]
    check_feasible([Resources(cpus=4)], nodes)
    with pytest.raises(Infeasible, match=r"resources\.cpus: found 5, allowed: at most 4"):
        check_feasible([Resources(cpus=5)], nodes)
    with pytest.raises(Infeasible, match=r"resources\.gpus: found 1, allowed: at most 0"):
        check_feasible([Resources(gpus=1)], nodes)


def test_what_fits_on_a_node_that_an_autoscaler_can_add_is_waited_for() -> None:
    head = [{"Alive": True, "Resources": {"memory": 8e9}}]
    types = [node_type("CPU=4,memory=16GB"), node_type("CPU=2, GPU=1, memory=2GiB, ssd=1")]
    assert types[1] == {"CPU": 2.0, "GPU": 1.0, "memory": 2.0 * 2**30, "ssd": 1.0}
    check_feasible([Resources(cpus=4), Resources(gpus=1, ranks=9), Resources(custom=(("ssd", 1.0),))], head, types)
    with pytest.raises(Infeasible, match=r"resources\.gpus: found 2, allowed: at most 1"):
        check_feasible([Resources(gpus=2)], head, types)
    with pytest.raises(Infeasible, match=r"resources\.ranks: found 2, allowed: at most 0"):
        check_feasible([Resources(cpus=4, gpus=1, ranks=2)], head, types)  # no kind has both


@pytest.mark.parametrize(
    "text", ["", "GPU", "GPU=", "=1", "GPU=one", "GPU=-1", "GPU=inf", "GPU=nan", "GPU=1,GPU=2", "memory=x"]
)
def test_a_kind_of_node_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: what a node of that kind has, such as CPU=8,GPU=1,memory=32GiB"):
        node_type(text)
