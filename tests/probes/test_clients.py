"""The probe of a federated round, by hand on two clients and against what FedOUI has its clients send."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from harness.conformance import run_short, short_spec
from harness.identity import Part
from harness.method import Round, State, Update
from harness.probes.clients import Clients
from harness.registry import Registry


class Bowl:
    """A validation loss of (w - 1)² + b² for the model w·x + b."""

    def evaluate(self, model: nn.Linear, split: str) -> dict[str, float]:
        assert split == "val"
        return {"loss": float((model.weight - 1).square() + model.bias.square())}


def measured(deltas: list[tuple[float, float]], weights: list[float], **options: Any) -> dict[str, float]:
    """What the probe says of a round that starts at w = 1, b = 0."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(7.0)
        model.bias.fill_(5.0)
    start = {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}
    updates = [
        Update(
            client,
            10,
            {"weight": torch.tensor([[w]]), "bias": torch.tensor([b])},
            {"told": torch.tensor(float(client))},
        )
        for client, (w, b) in enumerate(deltas, start=3)
    ]
    round = Round(start, updates, torch.tensor(weights, dtype=torch.float64))
    state = cast(State, SimpleNamespace(model=model, workload=Bowl(), round=round))
    found = Clients(**options).after_step(state)
    assert (float(model.weight.detach()), float(model.bias.detach())) == (7.0, 5.0), "the model is as it was"
    return {name.removeprefix("clients/"): value for name, value in found.items()}


def test_a_round_by_hand() -> None:
    """Changes (3, 4) and (1, 0) with shares 3/4 and 1/4: their mean is (2.5, 3)."""
    found = measured([(3.0, 4.0), (1.0, 0.0)], [0.75, 0.25], each=True)
    length = math.hypot(2.5, 3.0)
    cosines = [(3 * 2.5 + 4 * 3) / (5 * length), 2.5 / length]
    assert (found["update_norm/3"], found["update_norm/4"]) == pytest.approx((5.0, 1.0))
    assert (found["update_norm/mean"], found["update_norm/deviation"]) == pytest.approx((3.0, 2.0))
    assert [found["alignment/3"], found["alignment/4"]] == pytest.approx(cosines)
    assert (found["alignment/least"], found["alignment/most"]) == pytest.approx((min(cosines), max(cosines)))
    assert (found["weight/most"], found["effective"]) == pytest.approx((0.75, 1 / (0.75**2 + 0.25**2)))
    assert (found["payload/told/least"], found["payload/told/most"]) == (3.0, 4.0)
    # At the mean the loss is 2.5² + 3²; alone 3² + 4² and 1.
    assert found["barrier"] == pytest.approx(6.25 + 9 - (0.75 * 25 + 0.25 * 1))


def test_opposite_clients_cancel_and_a_client_that_stays_has_no_direction() -> None:
    found = measured([(2.0, 0.0), (-2.0, 0.0)], [0.5, 0.5], each=True)
    assert found["barrier"] == pytest.approx(-4.0), "averaging is better than either"
    assert (found["alignment/3"], found["effective"]) == (0.0, pytest.approx(2.0))
    still = measured([(2.0, 0.0), (0.0, 0.0)], [0.5, 0.5], barrier=False, each=True)
    assert (still["alignment/3"], still["alignment/4"], still["update_norm/4"]) == (pytest.approx(1.0), 0.0, 0.0)
    assert "barrier" not in still


def test_the_oui_of_clients_is_what_fed_oui_weighs_by(registry: Registry) -> None:
    """Over all samples of a client, neither order nor route counts; and it is there whatever the method."""
    everything = 10**6
    probes = [Part("clients", {"oui": everything, "barrier": False, "each": True})]
    spec = short_spec(registry, "digits/federated", [Part("fed_oui", {"probe": everything})], probes)
    compared = 0
    for record in run_short(registry, spec).records:
        metrics = record.get("metrics", {})
        sent = {name: value for name, value in metrics.items() if name.startswith("probe/clients/payload/oui/")}
        for name, value in sent.items():
            assert metrics[name.replace("payload/", "")] == pytest.approx(value, abs=1e-12)
            compared += 1
    assert compared > 10
    plain = run_short(registry, short_spec(registry, "digits/federated", [Part("fed_avg")], probes))
    assert any("probe/clients/oui/mean" in record.get("metrics", {}) for record in plain.records)


def test_one_sample_has_no_oui() -> None:
    with pytest.raises(ValueError, match=r"oui: found 1, must be 0 \(none\) or at least 2 samples"):
        Clients(oui=1)
