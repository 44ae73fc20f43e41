"""Published statements that can be judged without training, against the numbers that the authors released.

More of them lies beside the methods: the refresh rule's main table and boundaries (methods/test_balanced_adam.py), the golden
round (methods/test_fed_oui.py), the ranges of the controlled signal (probes/test_scale.py).
"""

import pytest
from papers_published import PUBLISHED, betas_by_scale, betas_of_rule, means_differ, oui_decay_wins
from scipy.stats import binomtest, t


def test_each_statement_comes_out_as_an_independent_reading_of_the_releases_has_it() -> None:
    found = [(one.arxiv, *one.answer()) for one in PUBLISHED]
    assert [(arxiv, str(outcome), numbers.split(";")[0].split(",")[0]) for arxiv, outcome, numbers in found] == [
        ("2603.21991", "supported", "159.577"),
        ("2601.21739", "supported", "12 of 15"),
        ("2601.21739", "undecided", "2 of 15"),
        ("2605.11571", "supported", "500 rounds"),
        ("2605.11571", "supported", "500 rounds"),
        ("2605.11571", "supported", "500 rounds"),
        ("2605.11571", "undecided", "0.2343 ± 0.0631 against 0.2163 ± 0.0244"),
        ("2605.11571", "undecided", "0.231 ± 0.0527 against 0.2727 ± 0.0335"),
        ("2605.10161", "contradicted", "6 of 8"),
        ("2605.10161", "contradicted", "6 of 8"),
        ("2605.10119", "supported", "18 numbers"),
        ("2605.10119", "supported", "0.82217"),
        ("2605.10119", "supported", "least largest gap at 0.94377"),
        ("2605.10119", "supported", "0.885 % against 1.328 %: 33.4 % less"),
        ("2605.10119", "supported", "11 of 11"),
    ]


@pytest.mark.parametrize("source", ["table", "runs"])
def test_oui_decay_misses_the_same_two_settings_either_way(source: str) -> None:
    _, numbers = oui_decay_wins(source)
    assert numbers.endswith(
        "not ResNet-50 on Food-101, 1e-2 (fixed decay) and DenseNet-121 on CIFAR-100, 5e-2 (AdaDecay)"
    )


def test_the_rule_selects_the_published_betas() -> None:
    """As an independent reading of the released files has them, run by run."""
    published = [0.82217, 0.9, 0.9, 0.9, 0.94377, 0.96838, 0.96838, 0.96838, 0.9, 0.9, 0.94377]
    assert sorted(betas_of_rule()[:8]) == published[:8] and sorted(betas_of_rule()[8:]) == published[8:]
    assert betas_by_scale()[1] == "0.82217, 0.9, 0.94377, 0.96838 for 6000 to 40000 steps"


def test_a_difference_of_three_seeds_by_hand() -> None:
    """Welch 1947: t = d / √(s²/3 + r²/3) with (s² + r²)² / ((s⁴ + r⁴) / 2) degrees of freedom for three of each."""
    (d, s, r) = (0.2343 - 0.2163, 0.0631, 0.0244)
    degrees = (s**2 + r**2) ** 2 / ((s**4 + r**4) / 2)
    p = t.sf(d / ((s**2 + r**2) / 3) ** 0.5, degrees)
    assert means_differ((0.2343, s), (0.2163, r))[1].endswith(f"p = {p:.2g} and {1 - p:.2g}")
    assert str(means_differ((0.9, 0.01), (0.5, 0.01))[0]) == "supported"
    assert str(means_differ((0.5, 0.01), (0.9, 0.01))[0]) == "contradicted"


def test_counts_against_chance_as_published() -> None:
    assert binomtest(12, 15, 1 / 5, alternative="greater").pvalue == pytest.approx(1.01e-6, rel=0.01)
    assert binomtest(9, 9, 1 / 3, alternative="greater").pvalue == pytest.approx(5.1e-5, rel=0.01)
