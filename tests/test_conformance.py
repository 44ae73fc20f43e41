"""Every registered task, method and probe passes the suite that `harness describe NAME --check` runs."""

import pytest

from harness.conformance import check_item
from harness.registry import KINDS, Item, Registry

ITEMS = [item for kind in KINDS for item in Registry().items(kind)]


def test_there_is_something_to_check() -> None:
    assert {item.kind for item in ITEMS} == set(KINDS)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item.kind} {item.name}")
def test_conformance(item: Item, registry: Registry) -> None:
    failed = [f"{verdict.name}{verdict.detail}" for verdict in check_item(item, registry) if not verdict.ok]
    assert not failed
