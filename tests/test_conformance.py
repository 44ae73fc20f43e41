"""Every registered task, method and probe passes the suite that `harness describe NAME --check` runs."""

from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from support import plugin

from harness.conformance import check_item
from harness.registry import KINDS, Item, Registry
from tasks.data import MissingData

SHOWN_BY = {
    "tasks.control": {"cartpole/ppo", "acrobot/ppo"},
    "tasks.vision": {"breast_cancer/mlp", "digits/any"},
    "tasks.language": {"stdlib/gpt_tiny"},
    "tasks.federated": {
        *(
            f"{name}/federated"
            for name in ("breast_cancer", "digits", "fashion_mnist", "cifar10", "cifar100", "cinic10")
        ),
        *("digits/pretraining", "cifar10/pretraining", "mnist_writers/federated", "shakespeare/federated"),
    },
}
"""Modules whose many tasks share a few classes, with those that are run here; `harness describe NAME --check` runs any."""

QUICK = {"poisson/pinn", "burgers/pinn"}
"""The networks of physics that every run of the tests checks; the others are marked slow."""


def shown(item: Item) -> bool:
    return item.name in SHOWN_BY.get(item.origin.split(":")[-1], {item.name})


ITEMS = [item for kind in KINDS for item in Registry().items(kind) if shown(item)]


def test_there_is_something_to_check() -> None:
    assert {item.kind for item in ITEMS} == set(KINDS)


def marked(item: Item) -> ParameterSet:
    slow = item.name.endswith("/pinn") and item.name not in QUICK
    return pytest.param(item, id=f"{item.kind} {item.name}", marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("item", map(marked, ITEMS))
def test_conformance(item: Item, registry: Registry) -> None:
    conforms(item, registry)


def conforms(item: Item, registry: Registry, device: str = "cpu") -> None:
    """Fails with the checks that fail, and skips what has no data here."""
    if item.kind == "task":
        try:
            registry.build_task(item.name, {}).data_digest()
        except MissingData as error:
            pytest.skip(str(error))
    failed = [f"{verdict.name}{verdict.detail}" for verdict in check_item(item, registry, device) if not verdict.ok]
    assert not failed


@pytest.mark.parametrize(
    ("loss", "together"),
    [("state.objectives[0].value.detach()", False), ("state.reduce(state.objectives[0].value)", True)],
)
def test_a_method_that_steers_by_its_own_part_of_the_batch_is_found_out(
    tmp_path: Path, loss: str, together: bool
) -> None:
    """Every rank sees another loss: what follows it has to go through `state.reduce`."""
    source = f"""
        @register_method("scaled")
        class Scaled(Method):
            def before_step(self, state):
                for parameter in state.model.parameters():
                    parameter.grad *= {loss}
        """
    registry = Registry([plugin(tmp_path, source)])
    found = {verdict.name: verdict.ok for verdict in check_item(registry.item("method", "scaled"), registry)}
    assert found["digits/mlp: two ranks stay together"] is together
