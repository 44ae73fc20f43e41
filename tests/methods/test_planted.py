"""The planted differences change what they say and nothing else."""

import torch
from torch import nn

from harness import Recipe
from methods.planted import Handicap, Placebo


def test_placebo_moves_weights_by_a_share_of_their_spread_and_leaves_biases() -> None:
    torch.manual_seed(0)
    model = nn.Linear(200, 300)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    Placebo(jitter=0.1).adapt(model, None)  # type: ignore[arg-type]
    moved = model.weight.detach() - weight
    assert abs(float(moved.std() / weight.std()) - 0.1) < 0.002
    assert torch.equal(model.bias, bias)


def test_handicap_multiplies_the_rate_that_a_group_has() -> None:
    groups = Handicap(rate=0.5).parameter_groups([{"params": []}, {"params": [], "lr_factor": 4.0}], Recipe())
    assert [group["lr_factor"] for group in groups] == [0.5, 2.0]
