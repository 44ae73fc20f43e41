"""Statements of the papers that can be judged without training, from the numbers that their authors released.

The released numbers lie in docs/papers/published/: `beta_sweep.tsv` (arXiv 2605.10119: mean best validation loss of 11 runs under
each beta, and the rounded horizon), `fedoui_rounds.npz` (arXiv 2605.11571: 500 rounds of each of four rules) and `oui_decay.tsv`
(arXiv 2605.10161: mean best validation loss by setting, as its table has it and as its released runs give it). Of FedOUI's
accuracies the released reports have means and deviations over three seeds.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import project_path  # noqa: F401  # before the packages
from scipy.stats import binomtest, ttest_ind_from_stats

from harness.judging.verdicts import Outcome
from methods import fed_align, fed_oui
from methods.balanced_adam import GRID, cvar, gaps, refresh_beta
from methods.lambda_gelu import target_hardness

RELEASED = Path(__file__).parent / "papers" / "published"
Answer = tuple[Outcome, str]


@dataclass(frozen=True)
class Published:
    """A statement of a paper, and how released numbers or the formula alone decide it."""

    arxiv: str
    statement: str
    answer: Callable[[], Answer]
    """The verdict, and the numbers that it rests on."""


def outcome(holds: bool) -> Outcome:
    """Of a statement about released numbers themselves, which leave nothing undecided."""
    return Outcome.SUPPORTED if holds else Outcome.CONTRADICTED


@lru_cache
def beta_sweep() -> list[tuple[float, dict[float, float]]]:
    """Horizon, and loss by beta, of each released run: eight of development, then three held out."""
    lines = [line.split("\t") for line in (RELEASED / "beta_sweep.tsv").read_text(encoding="utf-8").splitlines()]
    betas = [float(name) for name in lines[0][3:]]
    return [(float(horizon), dict(zip(betas, map(float, losses), strict=True))) for _, _, horizon, *losses in lines[1:]]


def betas_of_rule() -> list[float]:
    """What the refresh rule selects for each run."""
    return [refresh_beta(horizon, snap=True) for horizon, _ in beta_sweep()]


def gaps_of_rule() -> list[float]:
    """Each run's gap to its best beta under the refresh rule, in percent."""
    return [gaps(losses)[beta] for beta, (_, losses) in zip(betas_of_rule(), beta_sweep(), strict=True)]


def gaps_of(beta: float) -> list[float]:
    """The same under one fixed beta."""
    return [gaps(losses)[beta] for _, losses in beta_sweep()]


MAIN_TABLE = (
    ((0.264, 1.328, 1.055), (0.406, 0.885, 0.811)),
    ((0.359, 1.067, 1.067), (0.041, 0.124, 0.124)),
    ((0.290, 1.328, 1.059), (0.307, 0.885, 0.713)),
)
"""Mean, largest and CVaR of the gaps as published, under the fixed beta and the rule: development, held out, all runs."""


def main_table() -> Answer:
    """How far the released losses are from the published table of gaps."""
    parts = (slice(8), slice(8, None), slice(None))
    worst = 0.0
    for part, published in zip(parts, MAIN_TABLE, strict=True):
        for found, expected in zip((gaps_of(0.94377)[part], gaps_of_rule()[part]), published, strict=True):
            numbers = (sum(found) / len(found), max(found), cvar(found))
            worst = max(worst, *(abs(one - other) for one, other in zip(numbers, expected, strict=True)))
    return outcome(worst < 1e-3), f"18 numbers, largest difference {worst:.1g} %"


def betas_by_scale() -> Answer:
    """How many betas the rule selects over the runs, and whether longer horizons get larger ones."""
    found = sorted((horizon, beta) for (horizon, _), beta in zip(beta_sweep(), betas_of_rule(), strict=True))
    betas = [beta for _, beta in found]
    different = list(dict.fromkeys(betas))
    told = f"{', '.join(f'{beta:g}' for beta in different)} for {found[0][0]:g} to {found[-1][0]:g} steps"
    return outcome(len(different) > 1 and betas == sorted(betas)), told


def within_a_percent() -> Answer:
    """How many runs the rule brings within 1 % of their best beta."""
    rule, fixed = gaps_of_rule(), gaps_of(0.94377)
    inside = [sum(gap < 1 for gap in found) for found in (rule, fixed)]
    return outcome(inside[0] == len(rule)), f"{inside[0]} of {len(rule)}; the fixed beta {inside[1]}"


def worst_gap() -> Answer:
    """How much less the rule's largest gap is than the fixed beta's, as published of rounded gaps."""
    rule, fixed = gaps_of_rule(), gaps_of(0.94377)
    worst = [round(max(found), 3) for found in (rule, fixed)]
    less = 100 * (1 - worst[0] / worst[1])
    means = [sum(found) / len(found) for found in (rule, fixed)]
    numbers = f"{worst[0]} % against {worst[1]} %: {less:.1f} % less; the mean gap is {means[0]:.3f} % against {means[1]:.3f} %"
    return outcome(round(less, 1) == 33.4), numbers


def strongest_fixed() -> Answer:
    """Which fixed beta has the least largest gap, and which the least mean gap."""
    by_worst, by_mean = (min(GRID, key=lambda beta: measure(gaps_of(beta))) for measure in (max, sum))
    return outcome(by_worst == by_mean == 0.94377), f"least largest gap at {by_worst}, least mean gap at {by_mean}"


def oui_decay_wins(source: str) -> Answer:
    """In how many settings OUIDecay has the least mean, against the abstract's 7 of 8."""
    with (RELEASED / "oui_decay.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["from"] == source]
    names = ("fixed decay", "AdaDecay", "OUIDecay")
    best = {row["setting"]: min(names, key=lambda name: float(row[name])) for row in rows}
    missed = [f"{setting} ({name})" for setting, name in best.items() if name != "OUIDecay"]
    won = len(best) - len(missed)
    return outcome(won >= 7), f"{won} of {len(best)}; not {' and '.join(missed)}"


def released_rounds(rule: int) -> Answer:
    """Whether the formula gives the released weights of a rule's rounds."""
    released = np.load(RELEASED / "fedoui_rounds.npz")
    formulas: list[Callable[[Any, Any, Any], Any]] = [
        lambda sizes, oui, alignment: sizes / sizes.sum(),
        lambda sizes, oui, alignment: fed_align.weights(alignment, sizes),
        lambda sizes, oui, alignment: fed_oui.weights(oui, sizes),
    ]
    worst, count = 0.0, 0
    for which, sizes, oui, alignment, weight in zip(
        *(released[name] for name in ("method", "sizes", "oui_2048", "alignment", "weight")), strict=True
    ):
        if which == rule:
            found = formulas[rule](sizes, oui / 2048, alignment)
            worst, count = max(worst, float(np.abs(found - weight).max())), count + 1
    return outcome(worst <= 1e-9), f"{count} rounds, largest difference {worst:.1g}"


def more_often_than_chance(hits: int, rows: int, chance: float) -> Answer:
    """A count against what choosing at random would give, by the binomial test at 5 % on either side."""
    more, less = (float(binomtest(hits, rows, chance, alternative=side).pvalue) for side in ("greater", "less"))
    found = Outcome.SUPPORTED if more <= 0.05 else Outcome.CONTRADICTED if less <= 0.05 else Outcome.UNDECIDED
    return found, f"{hits} of {rows}, by chance {rows * chance:g}; p = {more:.2g} and {less:.2g}"


def means_differ(ours: tuple[float, float], theirs: tuple[float, float]) -> Answer:
    """Two means with their deviations over three seeds each, by Welch's test at 5 % on either side; no pairs are told."""
    more, less = (
        float(ttest_ind_from_stats(*ours, 3, *theirs, 3, equal_var=False, alternative=side).pvalue)
        for side in ("greater", "less")
    )
    found = Outcome.SUPPORTED if more <= 0.05 else Outcome.CONTRADICTED if less <= 0.05 else Outcome.UNDECIDED
    return found, f"{ours[0]} ± {ours[1]} against {theirs[0]} ± {theirs[1]}; p = {more:.2g} and {less:.2g}"


def hardness_target() -> Answer:
    """The hardness at which the integral of a gate's distance from a step is 0.005."""
    target = target_hardness(0.005)
    return outcome(round(target, -1) == 160), f"{target:.3f}"


PUBLISHED = (
    Published(
        "2603.21991",
        "a gate whose distance from a step has the integral 0.005 has a hardness of about 160",
        hardness_target,
    ),
    Published(
        "2601.21739",
        "the smoothest updates of a row of the released ResNet-18 grid are those at equal betas",
        lambda: more_often_than_chance(12, 15, 1 / 5),
    ),
    Published(
        "2601.21739",
        "the best validation loss of a row of that grid is that at equal betas",
        lambda: more_often_than_chance(2, 15, 1 / 5),
    ),
    Published("2605.11571", "rounds of FedAvg weigh clients by size", lambda: released_rounds(0)),
    Published("2605.11571", "rounds of FedAlign weigh clients as its formula says", lambda: released_rounds(1)),
    Published("2605.11571", "rounds of FedOUI weigh clients as its formula says", lambda: released_rounds(2)),
    Published(
        "2605.11571",
        "under strong heterogeneity FedOUI ends with a higher accuracy than FedAvg",
        lambda: means_differ((0.2343, 0.0631), (0.2163, 0.0244)),
    ),
    Published(
        "2605.11571",
        "with noisy clients FedOUI ends with a higher accuracy than FedAvg",
        lambda: means_differ((0.2310, 0.0527), (0.2727, 0.0335)),
    ),
    Published("2605.10161", "OUIDecay is best in 7 of 8 settings (table)", lambda: oui_decay_wins("table")),
    Published("2605.10161", "OUIDecay is best in 7 of 8 settings (runs)", lambda: oui_decay_wins("runs")),
    Published("2605.10119", "the main table is what the released losses give", main_table),
    Published("2605.10119", "the rule selects different betas depending on the training scale", betas_by_scale),
    Published("2605.10119", "0.94377 is the strongest fixed beta", strongest_fixed),
    Published("2605.10119", "the largest gap is 33.4 % less than under the fixed beta 0.94377", worst_gap),
    Published("2605.10119", "all 11 runs are within 1 % of their best beta", within_a_percent),
)
