"""How far a grid is, and how long it still takes."""

import io

import pytest
from rich.console import Console

from harness.resources import Resources
from harness.running import progress
from harness.running.progress import Cell, Progress

NODES = [{"CPU": 16.0, "GPU": 2.0, "memory": 64e9}, {"CPU": 8.0, "memory": 16e9}]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Resources(), 24),
        (Resources(cpus=3), 5 + 2),
        (Resources(gpus=1), 2),
        (Resources(gpus=0.25), 8),
        (Resources(gpus=0.1), 16),  # a CPU each
        (Resources(gpus=1, ranks=2), 1),
        (Resources(cpus=8, ranks=2), 1),  # three places
        (Resources(memory=8 * 10**9), 8 + 2),
        (Resources(custom=(("licence", 1),)), 1),  # no node has it yet
    ],
)
def test_how_many_run_at_a_time(asked: Resources, expected: int) -> None:
    assert asked.at_once(NODES) == expected


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def shown(cells: dict[str, Cell], slots: int) -> Progress:
    return Progress(Console(file=io.StringIO()), cells, slots)


def run(shown: Progress, clock: Clock, hashes: list[str], seconds: float) -> None:
    for hash in hashes:
        shown.started(hash)
    clock.now += seconds
    for hash in hashes:
        shown.ended(hash, "finished")


def test_what_asks_for_a_gpu_waits_for_gpus_and_not_for_cpus(clock: Clock) -> None:
    """Sixteen trials of 100 s, one GPU beside 16 CPUs: 1,500 s are left after the first one, not 94."""
    told = shown({f"g{n}": Cell("images", "sgd", 10, 1) for n in range(16)}, 16)
    assert told.eta() is None
    run(told, clock, ["g0"], 100)
    assert told.eta() == 1500
    told.started("g1")
    clock.now += 40
    assert told.eta() == 1460
    assert "about 24 min 20 s left" in told.line()


def test_cells_count_with_what_each_of_them_waits_for(clock: Clock) -> None:
    """Three trials of 100 s, one at a time, and six of 10 s, two at a time."""
    cells = {f"g{n}": Cell("images", "sgd", 10, 1) for n in range(4)}
    cells |= {f"c{n}": Cell("digits", "sgd", 10, 2) for n in range(8)}
    told = shown(cells, 2)
    run(told, clock, ["g0"], 100)
    run(told, clock, ["c0", "c1"], 10)
    assert told.eta() == 3 * 100 + 6 * 10 / 2


def test_the_last_trial_has_one_slot(clock: Clock) -> None:
    told = shown({f"t{n}": Cell("digits", "sgd", 10, 4) for n in range(5)}, 4)
    run(told, clock, ["t0", "t1", "t2", "t3"], 20)
    told.started("t4")
    clock.now += 5
    assert told.eta() == 15
    told.ended("t4", "finished")
    assert told.done == 5
    assert told.eta() == 0


def test_a_trial_that_lost_its_worker_does_not_run(clock: Clock) -> None:
    told = shown({name: Cell("digits", "sgd", 10) for name in "abc"}, 1)
    run(told, clock, ["a"], 20)
    told.started("b")
    told.moved("b", 5)
    clock.now += 10
    told.lost("b")
    told.started("c")
    assert "1 running" in told.line()
    assert told.eta() == 40, "b begins anew, as far as one knows"


def test_a_trial_that_is_tried_again_counts_once(clock: Clock) -> None:
    told = shown({name: Cell("digits", "sgd", 10) for name in "ab"}, 1)
    told.ended("a", "locked")
    told.ended("a", "locked")
    assert (told.done, "1 locked" in told.line()) == (1, True)
    told.ended("a", "finished")
    assert (told.done, "locked" in told.line()) == (1, False)


def test_the_seeds_of_a_stack_share_a_slot(clock: Clock) -> None:
    """Twenty seeds in two stacks of ten on one CPU: the second takes as long as the first, not ten times that."""
    told = shown({f"s{n}": Cell("digits", "sgd", 10, 1, stacked=True) for n in range(20)}, 1)
    run(told, clock, [f"s{n}" for n in range(10)], 30)
    for n in range(10, 20):
        told.started(f"s{n}")
    clock.now += 10
    assert told.eta() == 20
