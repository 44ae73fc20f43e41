"""The sides of `federated_speed.py` and `flower_equivalence.py`: one task, trained by each framework as its users would.

Run as `python benchmarks/federated_sides.py SIDE TASK.npz`, it answers each line `ROUNDS` on its input with one line of
JSON: the seconds per round that it took and, where the side scores it, the test accuracy after each round.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CLIENTS, PER_ROUND, BATCH, LR = 20, 10, 10, 0.05
Run = Callable[[int], dict[str, Any]]


class Task:
    """The training images of each client, a test part, initial weights and the participants of each round."""

    def __init__(self, path: str) -> None:
        found = np.load(path)
        self.clients = [
            (torch.from_numpy(found[f"x{k}"]), torch.from_numpy(found[f"y{k}"]).long()) for k in range(CLIENTS)
        ]
        self.test = torch.from_numpy(found["x"]), torch.from_numpy(found["y"]).long()
        self.weights = [torch.from_numpy(found[f"w{i}"]) for i in range(4)]
        self.participants = found["participants"].tolist()

    def model(self) -> nn.Sequential:
        """64-64-10 with the initial weights."""
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), self.weights, strict=True):
                parameter.copy_(weight)
        return model


def epoch(x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one pass in a random order."""
    for index in torch.randperm(len(y), generator=generator).split(BATCH):
        yield x[index], y[index]


def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(test[0]).argmax(dim=1) == test[1]).float().mean())


def plain(task: Task) -> Run:
    """Federated averaging as anybody would write it."""
    model, generator = task.model(), torch.Generator().manual_seed(0)
    parameters = list(model.parameters())
    position = 0

    def run(rounds: int) -> dict[str, Any]:
        nonlocal position
        started = time.perf_counter()
        for _ in range(rounds):
            chosen = task.participants[position % len(task.participants)]
            position += 1
            server = [parameter.detach().clone() for parameter in parameters]
            total = [torch.zeros_like(weight) for weight in server]
            samples = sum(len(task.clients[k][1]) for k in chosen)
            for k in chosen:
                with torch.no_grad():
                    for parameter, weight in zip(parameters, server, strict=True):
                        parameter.copy_(weight)
                optimizer = torch.optim.SGD(parameters, lr=LR, fused=True)
                for x, y in epoch(*task.clients[k], generator):
                    optimizer.zero_grad()
                    functional.cross_entropy(model(x), y).backward()
                    optimizer.step()
                with torch.no_grad():
                    for weight, parameter in zip(total, parameters, strict=True):
                        weight.add_(parameter, alpha=len(task.clients[k][1]) / samples)
            with torch.no_grad():
                for parameter, weight in zip(parameters, total, strict=True):
                    parameter.copy_(weight)
        return {"seconds": (time.perf_counter() - started) / rounds}

    return run


def vectorised(task: Task) -> Run:
    """All clients of a round as one computation: `torch.func` over clients, batches padded and masked."""
    model, generator = task.model(), torch.Generator().manual_seed(0)
    server = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (x,))
        return (functional.cross_entropy(logits, y, reduction="none") * mask).sum() / mask.sum().clamp(min=1)

    gradients = torch.func.vmap(torch.func.grad(loss))
    position = 0

    def run(rounds: int) -> dict[str, Any]:
        nonlocal position
        started = time.perf_counter()
        for _ in range(rounds):
            chosen = task.participants[position % len(task.participants)]
            position += 1
            sizes = [len(task.clients[k][1]) for k in chosen]
            steps = -(-max(sizes) // BATCH)
            x, y = (
                torch.zeros(len(chosen), steps * BATCH, 64),
                torch.zeros(len(chosen), steps * BATCH, dtype=torch.int64),
            )
            mask = torch.zeros(len(chosen), steps * BATCH)
            for row, k in enumerate(chosen):
                order = torch.randperm(sizes[row], generator=generator)
                x[row, : sizes[row]], y[row, : sizes[row]] = task.clients[k][0][order], task.clients[k][1][order]
                mask[row, : sizes[row]] = 1
            stacked = {name: weight.expand(len(chosen), *weight.shape).clone() for name, weight in server.items()}
            for step in range(steps):
                part = slice(step * BATCH, (step + 1) * BATCH)
                for name, gradient in gradients(stacked, x[:, part], y[:, part], mask[:, part]).items():
                    stacked[name].sub_(gradient, alpha=LR)
            shares = torch.tensor(sizes) / sum(sizes)
            for name, weights in stacked.items():
                server[name] = torch.einsum("k,k...->...", shares, weights)
        return {"seconds": (time.perf_counter() - started) / rounds}

    return run


def harness(task: Task) -> Run:
    """Rounds of the harness's federated loop, with what it records of each step."""
    from typing import cast

    from harness.composition import Composition
    from harness.method import State
    from harness.streams import Streams
    from harness.training.federation import advance
    from harness.training.state import Training
    from harness.training.trial import build_recipe
    from methods.baselines import FedAvg
    from tasks.data.splits import Split, Splits
    from tasks.federated import FederatedDigits
    from tasks.federation import FederatedClassification, FederatedRecipe
    from tasks.partitions import Partition

    options = {"rounds": 10**6, "clients_per_round": PER_ROUND, "batch": BATCH, "lr": LR, "optimizer": "sgd"}
    recipe = cast(FederatedRecipe, build_recipe(FederatedDigits(), options | {"schedule": "constant"}))
    whole = Split(torch.cat([x for x, _ in task.clients]), torch.cat([y for _, y in task.clients]))
    ends = np.cumsum([0, *(len(y) for _, y in task.clients)])
    parts = [torch.arange(start, end) for start, end in itertools.pairwise(ends)]
    splits = Splits(whole, Split(*task.test), Split(*task.test))
    workload = FederatedClassification(task.model(), splits, Partition(parts), recipe, Streams(0), classes=10)
    drawn = task.participants
    workload.participants = lambda round: drawn[round % len(drawn)]  # type: ignore[method-assign]
    state = State(workload.model, workload, recipe, Streams(0), horizon=recipe.length)
    training = Training(cast(Any, None), state, Composition([FedAvg()]), {}, cast(Any, None))

    def run(rounds: int) -> dict[str, Any]:
        started = time.perf_counter()
        for _ in range(rounds):
            advance(training)
        return {"seconds": (time.perf_counter() - started) / rounds}

    def scored(rounds: int) -> dict[str, Any]:
        curve = []
        for _ in range(rounds):
            advance(training)
            curve.append(accuracy(state.model, task.test))
        return {"accuracy": curve}

    run.scored = scored  # type: ignore[attr-defined]
    return run


def pfl(task: Task) -> Run:
    """pfl-research 0.6: one resident model, clients in a loop. Its batches come in the order of the data."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = task.model()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return functional.cross_entropy(self(x), y)

        def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Any]:
            return {}

    module = Model()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    drawn = iter([k for _ in range(10_000) for chosen in task.participants for k in chosen])
    users = FederatedDataset(lambda k: Dataset(list(task.clients[k]), user_id=str(k)), lambda: next(drawn))
    backend = SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()])
    train = NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=LR)

    def run(rounds: int) -> dict[str, Any]:
        params = NNAlgorithmParams(rounds, evaluation_frequency=10**9, train_cohort_size=PER_ROUND, val_cohort_size=0)
        started = time.perf_counter()
        FederatedAveraging().run(params, backend, model, train, NNEvalHyperParams(local_batch_size=None))
        return {"seconds": (time.perf_counter() - started) / rounds}

    return run


def flower(task: Task) -> Run:
    """Flower's simulation on two cores. A run starts Ray and its actors, so the first round does not count."""
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    class Client(NumPyClient):
        def __init__(self, index: int) -> None:
            self.data = task.clients[index]

        def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
            torch.set_num_threads(1)
            model = task.model()
            with torch.no_grad():
                for own, sent in zip(model.parameters(), parameters, strict=True):
                    own.copy_(torch.from_numpy(np.array(sent)))
            optimizer = torch.optim.SGD(model.parameters(), lr=LR, fused=True)
            for x, y in epoch(*self.data, torch.Generator().manual_seed(int(config["seed"]))):
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            return [p.detach().numpy() for p in model.parameters()], len(self.data[1]), {}

    def run(rounds: int) -> dict[str, Any]:
        ends: list[float] = []
        curve: list[float] = []

        class Strategy(FedAvg):  # type: ignore[misc]
            def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
                assert not failures, failures
                aggregated = super().aggregate_fit(server_round, results, failures)
                ends.append(time.perf_counter())
                model = task.model()
                with torch.no_grad():
                    for own, sent in zip(model.parameters(), parameters_to_ndarrays(aggregated[0]), strict=True):
                        own.copy_(torch.from_numpy(np.array(sent)))
                curve.append(accuracy(model, task.test))
                return aggregated

        def server(context: Any) -> Any:
            strategy = Strategy(
                fraction_fit=PER_ROUND / CLIENTS,
                fraction_evaluate=0.0,
                min_fit_clients=PER_ROUND,
                min_available_clients=CLIENTS,
                initial_parameters=ndarrays_to_parameters([weight.numpy() for weight in task.weights]),
                on_fit_config_fn=lambda server_round: {"seed": server_round},
            )
            return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds + 1))

        app = ClientApp(client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client())
        options = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
        run_simulation(ServerApp(server_fn=server), app, num_supernodes=CLIENTS, backend_config=options)  # type: ignore[arg-type]
        return {"seconds": (ends[-1] - ends[0]) / rounds, "accuracy": curve[:rounds]}

    return run


SIDES = {"plain": plain, "harness": harness, "vectorised": vectorised, "pfl": pfl, "flower": flower}


def main() -> None:
    side, path = sys.argv[1:3]
    torch.set_num_threads(1)
    run = SIDES[side](Task(path))
    answer = os.dup(1)
    os.dup2(2, 1)  # what a framework prints is not an answer
    for line in sys.stdin:
        command, rounds = line.split()
        with redirect_stdout(io.StringIO()), redirect_stderr(sys.stderr):
            found = (getattr(run, "scored", run) if command == "score" else run)(int(rounds))
        os.write(answer, (json.dumps(found) + "\n").encode())


if __name__ == "__main__":
    main()
