"""FedOUI and FedAlign against every released round, the fallbacks against second implementations, and trials of them."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from support import RELEASED

from harness.conformance import Ran, run_short
from harness.identity import Part, TrialSpec
from harness.method import Server, Update
from harness.registry import Registry
from harness.training.federation import client_weights
from harness.training.trial import build_recipe
from methods import fed_align, fed_oui
from tasks.federated import FederatedDigits

SIZES = [210, 226, 66, 40, 17]
OUI = [0.12646484375, 0.25732421875, 0.31005859375, 0.31787109375, 0.37158203125]
ALIGNMENT = [0.8231560588, 0.4182825685, 0.0588108748, 0.3417575955, 0.0513370410]
RULES = ("fedavg", "fedalign", "fedoui", "fedoui_align")


def spec(*methods: Part, seed: int = 0, **recipe: object) -> TrialSpec:
    resolved = asdict(build_recipe(FederatedDigits(), {"rounds": 3, "evaluate_every": 3, "record_every": 1} | recipe))
    return TrialSpec("digits/federated", {}, 1, list(methods), resolved, {"init": seed})


def trains_alike(one: Ran, other: Ran) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


# --- published numbers


def test_the_golden_round() -> None:
    assert fed_oui.beta_fit(OUI) == pytest.approx((6.095107882, 15.935920961), abs=5e-9)
    expected = [0.07426859, 0.89499622, 0.68205364, 0.62641017, 0.31648009]
    np.testing.assert_allclose(fed_oui.typicality(OUI), expected, rtol=0, atol=5e-9)
    expected = [0.05378584, 0.68904808, 0.15340293, 0.08539775, 0.01836540]
    np.testing.assert_allclose(fed_oui.weights(OUI, SIZES), expected, rtol=0, atol=5e-9)
    expected = [0.60435, 0.33088, 0.01378, 0.04787, 0.00311]
    np.testing.assert_allclose(fed_align.weights(ALIGNMENT, SIZES), expected, rtol=0, atol=5e-6)


def test_all_released_rounds() -> None:
    """2,000 rounds of the authors' runs: 500 of each method, among them compositions whose factors multiply once."""
    released = np.load(RELEASED / "fedoui_rounds.npz")
    seen = dict.fromkeys(RULES, 0)
    for method, sizes, oui, alignment, weight in zip(
        *(released[name] for name in ("method", "sizes", "oui_2048", "alignment", "weight")), strict=True
    ):
        name, oui = RULES[method], oui / 2048
        both = sizes * fed_oui.factors(oui) * fed_align.factors(alignment)
        computed = {
            "fedavg": sizes / sizes.sum(),
            "fedalign": fed_align.weights(alignment, sizes),
            "fedoui": fed_oui.weights(oui, sizes),
            "fedoui_align": both / both.sum(),
        }[name]
        np.testing.assert_allclose(computed, weight, rtol=0, atol=1e-9)
        seen[name] += 1
    assert set(seen.values()) == {500}


# --- properties


def test_weights_are_shares_and_follow_their_clients() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        oui, sizes = generator.uniform(0, 1, 6), generator.integers(1, 500, 6)
        weights, order = fed_oui.weights(oui, sizes), generator.permutation(6)
        assert weights.min() > 0 and weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(fed_oui.weights(oui[order], sizes[order]), weights[order], rtol=1e-12)


def test_without_a_signal_it_is_federated_averaging() -> None:
    shares = np.array(SIZES) / sum(SIZES)
    np.testing.assert_allclose(fed_oui.weights([0.3] * 5, SIZES), shares, rtol=1e-15)
    np.testing.assert_allclose(fed_oui.weights(OUI, SIZES, gamma=0), shares, rtol=1e-15)
    assert fed_oui.weights([0.4], [7]).tolist() == [1.0]
    np.testing.assert_allclose(fed_oui.weights([0.1, 0.9], [3, 1]), [0.75, 0.25])  # ranks 1/3 and 2/3


def test_the_median_is_most_typical() -> None:
    """A value placed, with a Beta fit of our own, at the median of the distribution fitted to it and the others."""
    others = [0.1, 0.2, 0.4, 0.5]

    def above_median(value: float) -> float:
        x = np.array([*others, value])
        c = x.mean() * (1 - x.mean()) / x.var(ddof=1) - 1
        return float(stats.beta.cdf(value, x.mean() * c, (1 - x.mean()) * c)) - 0.5

    median = optimize.brentq(above_median, 0.11, 0.9, xtol=1e-14)
    assert fed_oui.typicality([*others, median])[-1] == pytest.approx(1, abs=1e-9)


# --- fallbacks, which no released round takes


@pytest.mark.parametrize("oui", [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.01, 0.99, 1.0]])
def test_likelihood_where_moments_fit_nothing(oui: list[float]) -> None:
    """Against the score equations of the Beta likelihood, solved on their own."""
    x = np.clip(oui, 1e-3, 1 - 1e-3)
    assert x.var(ddof=1) >= x.mean() * (1 - x.mean())
    fit = fed_oui.beta_fit(oui)

    def score(logs: np.ndarray) -> np.ndarray:
        a, b = np.exp(logs)
        common = special.digamma(a + b)
        return np.array(
            [np.log(x).mean() - special.digamma(a) + common, np.log1p(-x).mean() - special.digamma(b) + common]
        )

    solved = optimize.root(score, np.log([0.3, 0.3]))
    assert solved.success and fit == pytest.approx(tuple(np.exp(solved.x)), rel=1e-6)
    law = stats.beta(*np.exp(solved.x))
    expected = [2 * min(law.cdf(value), law.sf(value)) for value in np.clip(oui, 1e-4, 1 - 1e-4)]
    np.testing.assert_allclose(fed_oui.typicality(oui), expected, rtol=1e-5)


def test_ranks_by_hand() -> None:
    np.testing.assert_allclose(fed_oui.typicality([0.0, 1.0, 1.0], fallback="ranks"), [0.5, 0.75, 0.75])
    np.testing.assert_allclose(fed_oui.typicality([0.9, 0.1]), [2 / 3, 2 / 3])
    np.testing.assert_allclose(fed_oui.typicality([0.2] * 4), [1.0] * 4)
    assert fed_oui.beta_fit([0.1, 0.2]) is fed_oui.beta_fit([0.2] * 4) is None


def test_no_convergence_falls_to_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*arguments: object, **options: object) -> None:
        raise stats.FitError("no luck")

    monkeypatch.setattr(stats.beta, "fit", fit)
    np.testing.assert_allclose(fed_oui.typicality([0.0, 1.0, 1.0]), [0.5, 0.75, 0.75])


def test_earlier_rounds_enter_the_fit_alone() -> None:
    pool = [0.2, 0.22, 0.24, 0.4, 0.5]
    x = np.array([*OUI, *pool])
    mean, variance = x.mean(), x.var(ddof=1)
    c = mean * (1 - mean) / variance - 1
    law = stats.beta(mean * c, (1 - mean) * c)
    expected = [2 * min(law.cdf(v), law.sf(v)) for v in OUI]
    np.testing.assert_allclose(fed_oui.typicality(OUI, pool), expected, rtol=1e-9)


@pytest.mark.parametrize("oui", [[float("nan"), 0.2, 0.3], [1.2, 0.2, 0.3]])
def test_what_is_no_oui_is_refused(oui: list[float]) -> None:
    with pytest.raises(ValueError, match=r"oui: found .*, must lie in \[0, 1\]"):
        fed_oui.weights(oui, [1, 1, 1])


# --- alignment


@pytest.mark.parametrize(
    ("deltas", "sizes", "cosines"),
    [
        ([{"w": [3.0, 0.0], "b": [4.0]}, {"w": [0.0, 0.0], "b": [0.0]}], [1, 3], [1.0, 0.0]),
        ([{"w": [2.0]}, {"w": [-1.0]}], [1, 1], [1.0, -1.0]),
        ([{"w": [1.0, 0.0]}, {"w": [0.0, 1.0]}], [3, 1], [3 / 10**0.5, 1 / 10**0.5]),
    ],
)
def test_alignment_by_hand(deltas: list[dict[str, list[float]]], sizes: list[int], cosines: list[float]) -> None:
    updates = [
        Update(client, size, {name: torch.tensor(values) for name, values in delta.items()})
        for client, (delta, size) in enumerate(zip(deltas, sizes, strict=True))
    ]
    method = fed_align.FedAlign()
    method._names = list(deltas[0])
    assert method.factor(updates).tolist() == pytest.approx([max(0.0, cosine) + 1e-3 for cosine in cosines])


# --- trials


def test_recorded_factors_are_those_of_the_recorded_ouis(registry: Registry) -> None:
    ran = run_short(registry, spec(Part("fed_oui"), clients_per_round=6))
    actions = [(record["step"], record["action"], record["values"]) for record in ran.records if "action" in record]
    sizes = ran.training.workload.sizes  # type: ignore[attr-defined]
    for number in range(3):
        oui = {
            k: v
            for step, name, values in actions
            if step == number and name.startswith("oui/")
            for k, v in values.items()
        }
        (factor,) = (values for step, name, values in actions if step == number and name.startswith("factor"))
        assert oui.keys() == factor.keys() and len(oui) == 6
        np.testing.assert_allclose(list(factor.values()), fed_oui.factors(list(oui.values())), rtol=1e-12)
        probes = {client: min(32, sizes[int(client)]) for client in oui}
        counts = [value * 64 * (probes[client] // 2) for client, value in oui.items()]  # of 64 units
        assert counts == pytest.approx([round(count) for count in counts], abs=1e-9)


def test_disabled_it_trains_as_federated_averaging(registry: Registry) -> None:
    plain = run_short(registry, spec(Part("fed_avg")))
    assert trains_alike(plain, run_short(registry, spec(Part("fed_oui", {"gamma": 0.0}))))
    assert trains_alike(plain, run_short(registry, spec(Part("fed_align", {"eta": 0.0}))))
    assert not trains_alike(plain, run_short(registry, spec(Part("fed_oui"))))


def test_one_participant_is_federated_averaging(registry: Registry) -> None:
    runs = [run_short(registry, spec(Part(name), clients_per_round=1)) for name in ("fed_avg", "fed_oui", "fed_align")]
    assert trains_alike(runs[0], runs[1]) and trains_alike(runs[0], runs[2])


def test_the_factors_of_a_composition_multiply_once(registry: Registry) -> None:
    ran = run_short(registry, spec(Part("fed_oui"), Part("fed_align"), rounds=1, evaluate_every=1))
    factors = [record["values"] for record in ran.records if record.get("action", "").startswith("factor")]
    swapped = run_short(registry, spec(Part("fed_align"), Part("fed_oui"), rounds=1, evaluate_every=1))
    assert len(factors) == 2 and trains_alike(ran, swapped)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8])
def test_the_fit_pools_the_rounds_of_the_window(window: int) -> None:
    method = fed_oui.FedOUI(window=window)
    for round in range(12):
        kept = [values[0] for values in method.state_dict()["earlier"]]
        assert kept == [r / 100 for r in range(max(0, round - window + 1), round)]
        payload = {"oui": torch.tensor(round / 100, dtype=torch.float64)}
        method.after_aggregate(Server(round, {}), [Update(0, 1, {}, payload)])


def test_the_method_weighs_as_the_function(registry: Registry) -> None:
    oui, sizes = [0.1, 0.3, 0.35, 0.4], [10, 200, 30, 40]
    updates = [
        Update(k, n, {}, {"oui": torch.tensor(value, dtype=torch.float64)})
        for k, (value, n) in enumerate(zip(oui, sizes, strict=True))
    ]
    found = client_weights(updates, fed_oui.FedOUI(rho=0.5, gamma=2.0).factor(updates))
    assert found.tolist() == pytest.approx(fed_oui.weights(oui, sizes, gamma=2.0, rho=0.5).tolist())


def test_a_window_of_rounds_survives_a_resume(registry: Registry) -> None:
    windowed = spec(Part("fed_oui", {"window": 3}), rounds=4)
    whole = run_short(registry, windowed)
    assert whole.same_as(run_short(registry, windowed, interrupt_at=2))
    assert not trains_alike(whole, run_short(registry, spec(Part("fed_oui"), rounds=4)))


@pytest.mark.parametrize("options", [{"probe": 1}, {"window": 0}, {"gamma": -1.0}, {"rho": -0.1}])
def test_bad_options_are_named(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: found"):
        fed_oui.FedOUI(**options)  # type: ignore[arg-type]
