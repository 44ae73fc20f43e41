"""Two gloo ranks run digits/mlp through the contract and stay together."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as processes

from harness.conformance import run_short, short_spec
from harness.conformance.runs import train_through
from harness.identity import Part, TrialSpec
from harness.method import Ranks
from harness.recording.records import Attempt
from harness.registry import Registry
from harness.training import loop
from harness.training.forked import on_ranks
from harness.training.ranks import DistributedRanks
from harness.training.state import weights_digest
from harness.training.trial import set_up, settings


def rank(index: int, world: int, folder: str, spec_json: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=world)
    spec = TrialSpec.from_json(spec_json)
    with settings(spec), Attempt(Path(folder) / str(index), spec.hash, spec_json, "test") as attempt:
        training = set_up(spec, Registry(), attempt, DistributedRanks())
        loop.train(training)
        assert torch.equal(training.state.reduce(torch.tensor(float(index))), torch.tensor((world - 1) / 2))
    torch.save(training.state.model.state_dict(), f"{folder}/weights-{index}.pt")
    distributed.destroy_process_group()


def test_two_ranks_follow_one(registry: Registry, tmp_path: Path) -> None:
    spec = short_spec(registry, "digits/mlp", [Part("adamw")], precision="float64")
    alone = run_short(registry, spec).weights
    processes.spawn(rank, (2, str(tmp_path), spec.to_json()), nprocs=2)
    first, second = (torch.load(tmp_path / f"weights-{index}.pt", weights_only=True) for index in (0, 1))
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), "ranks have drifted apart"
        torch.testing.assert_close(first[name], expected, rtol=1e-9, atol=1e-11)


def test_a_batch_must_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = DistributedRanks.__new__(DistributedRanks)
    ranks.index, ranks.world = 0, 2
    with pytest.raises(ValueError, match="found 3, must be a multiple of the 2 ranks"):
        ranks.shard({"inputs": torch.zeros(3, 1)})


def test_what_a_rank_gives_arrives_as_it_was() -> None:
    """Values, types and the layout in memory, however deep; a view comes without what lies around it."""
    images = torch.arange(48.0).reshape(2, 2, 3, 4).to(memory_format=torch.channels_last)
    given = {
        "tensors": {"images": images, "view": torch.arange(10)[2:8:2], "one": torch.tensor(2.5, dtype=torch.float64)},
        "rest": [("flags", torch.tensor([True, False])), torch.zeros(0, 3), 7, 0.1, "text", None],
    }

    def received(ranks: Ranks) -> str:
        found = ranks.share(1, given if ranks.index == 1 else {})
        tensors = found["tensors"]
        assert tensors["images"].is_contiguous(memory_format=torch.channels_last)
        return repr({name: (tensor.tolist(), tensor.dtype) for name, tensor in tensors.items()}) + repr(found["rest"])

    expected = repr({name: (tensor.tolist(), tensor.dtype) for name, tensor in given["tensors"].items()})  # type: ignore[attr-defined]
    assert on_ranks(3, received) == [expected + repr(given["rest"])] * 3


@pytest.mark.parametrize("method", ["shuffled(fed_oui)", "fed_align", "scaffold"])
def test_ranks_without_a_client_keep_up(registry: Registry, tmp_path: Path, method: str) -> None:
    """Four ranks, and rounds of one client or three: hooks that steer the server are called on every rank."""
    recipe = {"rounds": 4, "clients_per_round": 4, "client_dropout": 0.5}
    spec = replace(short_spec(registry, "digits/federated", [Part(method)], **recipe), seed={"init": 2})

    def trained(ranks: Ranks) -> str:
        with settings(spec), Attempt(tmp_path / str(ranks.index), spec.hash, spec.to_json(), "test") as attempt:
            training = set_up(spec, registry, attempt, ranks)
            train_through(training)
        return weights_digest(training.state.model)

    assert on_ranks(4, trained) == [trained(Ranks())] * 4
