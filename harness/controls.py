r"""Controls of adaptive methods: is it the signal, or the amount?

An adaptive method says what it does through `state.act`, and applies what that returns. A control runs the same method and
returns something else:

================  ====================================================================================================
`mean_of(m)`      one arithmetic mean over steps and names of what `m` did in its run under the same seed; for what is done
                  to clients (`factor`), the mean of each client over its rounds
`shuffled(m)`     `m`'s own signal, each step's values permuted over the names
`delayed(m)`      `m`'s own signal, each receiver's `delay` actions late; until then its first one; in a federated task
                  what is done at a client is late within each visit
`replay(m)`       what `m` did under the next seed, action by action; under the same seed it changes nothing, to the bit
================  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.method import Client, Groups, Method, Server, State, Update
from harness.names import CONTROLS, split_control
from harness.recipe import Recipe
from harness.task import Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.registry import Registry

Values = dict[str, float]
Actions = Iterable[tuple[int, str, Values]]
"""What a method did: step, name of the action, and values by the name of what received them."""

PER_NAME = "factor"
"""The action whose mean is taken for each name apart: a client is the same client in every round."""


def build_member(registry: Registry, name: str, options: dict[str, Any]) -> Method:
    """A method by name, or the control of one.

    Raises:
        RegistryError: if the name is unknown.
        OptionError: if an option does not fit.
    """
    control, inner = split_control(name)
    if not control:
        return registry.build_method(name, options)
    own = {option: options[option] for option in CONTROLS[control] if option in options}
    method = registry.build_method(inner, {option: v for option, v in options.items() if option not in own})
    return KINDS[control](name, method, **own)


class Control(Method):
    """A method whose actions are replaced. Everything else it does as ever."""

    def __init__(self, name: str, method: Method) -> None:
        self.name, self.method = name, method
        self.needs, self.owns, self.source = method.needs, method.owns, method.source  # type: ignore[misc]
        self.saves_variants = method.saves_variants  # type: ignore[misc]
        self._round = 0
        self._streams: Any = None

    def take(self, actions: Actions) -> None:
        """Is given what the method did in the run that this control needs.

        Clients' own actions are recorded as `name/client/step`, factors as `factor/method`.
        """
        _, inner = split_control(self.name)
        kinds = ((name.split("/"), values) for _, name, values in actions)
        self.taken = [(kind, values) for (kind, *rest), values in kinds if kind != PER_NAME or rest == [inner]]
        if not self.taken:
            raise ValueError(
                f"{self.name}: found no actions in the run of {inner}: it does not adapt, or was not asked to record them"
            )

    def _missing(self, name: str) -> ValueError:
        return ValueError(f"{self.name}: found no action {name!r} in the run that it takes them from")

    def replace(self, step: int, name: str, values: Values) -> Values:
        """What is done in the place of `values`."""
        raise NotImplementedError

    @contextmanager
    def _over(self, state: State) -> Iterator[None]:
        outer, state.control = state.control, self.replace
        self._streams = state.streams
        try:
            yield
        finally:
            state.control = outer

    def adapt(self, model: nn.Module, workload: Workload) -> nn.Module:
        return self.method.adapt(model, workload)

    def parameter_groups(self, groups: Groups, recipe: Recipe) -> Groups:
        return self.method.parameter_groups(groups, recipe)

    def optimizer(self, groups: Groups, recipe: Recipe, horizon: int) -> torch.optim.Optimizer | None:
        return self.method.optimizer(groups, recipe, horizon)

    def start(self, state: State) -> None:
        with self._over(state):
            self.method.start(state)

    def before_backward(self, state: State) -> None:
        with self._over(state):
            self.method.before_backward(state)

    def after_backward(self, state: State) -> None:
        with self._over(state):
            self.method.after_backward(state)

    def before_step(self, state: State) -> None:
        with self._over(state):
            self.method.before_step(state)

    def after_step(self, state: State) -> None:
        with self._over(state):
            self.method.after_step(state)

    def before_evaluation(self, state: State) -> None:
        with self._over(state):
            self.method.before_evaluation(state)

    def after_evaluation(self, state: State, metrics: dict[str, float]) -> None:
        with self._over(state):
            self.method.after_evaluation(state, metrics)

    def selectable(self, state: State) -> bool:
        return self.method.selectable(state)

    def variants(self, model: nn.Module) -> dict[str, nn.Module]:
        return self.method.variants(model)

    def notes(self) -> list[str]:
        return self.method.notes()

    def travels(self, name: str) -> bool:
        return self.method.travels(name)

    def state_dict(self) -> dict[str, Any]:
        return self.method.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state)

    def start_client(self, client: Client, server: Server) -> None:
        self._round = server.round
        with self._over(client.state):
            self.method.start_client(client, server)

    def finish_client(self, client: Client) -> dict[str, Tensor]:
        with self._over(client.state):
            return self.method.finish_client(client)

    def factor(self, updates: Sequence[Update]) -> Tensor | None:
        factor = self.method.factor(updates)
        if factor is None:
            return None
        names = [str(update.client) for update in updates]
        done = self.replace(self._round, "factor", dict(zip(names, factor.tolist(), strict=True)))
        return torch.tensor([done[name] for name in names], dtype=torch.float64)

    def aggregate(self, updates: Sequence[Update], weights: Tensor) -> dict[str, Tensor] | None:
        return self.method.aggregate(updates, weights)

    def after_aggregate(self, server: Server, updates: Sequence[Update]) -> None:
        self.method.after_aggregate(server, updates)


class MeanOf(Control):
    """The same amount, no signal."""

    def take(self, actions: Actions) -> None:
        super().take(actions)
        sums: dict[tuple[str, str], list[float]] = {}
        for name, values in self.taken:
            for receiver, value in values.items():
                total = sums.setdefault((name, receiver if name == PER_NAME else ""), [0.0, 0.0])
                total[0] += value
                total[1] += 1
        self._means = {key: total / count for key, (total, count) in sums.items()}

    def replace(self, step: int, name: str, values: Values) -> Values:
        keys = {receiver: (name, receiver if name == PER_NAME else "") for receiver in values}
        if not self._means.keys() >= set(keys.values()):
            raise self._missing(name)
        return {receiver: self._means[key] for receiver, key in keys.items()}


class Shuffled(Control):
    """The same values at every step, given to others."""

    def replace(self, step: int, name: str, values: Values) -> Values:
        generator = torch.Generator().manual_seed(self._streams.seed(f"method/{self.name}/{name}/{step}"))
        order = torch.randperm(len(values), generator=generator).tolist()
        given = list(values.values())
        return {receiver: given[place] for receiver, place in zip(values, order, strict=True)}


class Delayed(Control):
    """The same signal, late."""

    def __init__(self, name: str, method: Method, delay: int = 1) -> None:
        super().__init__(name, method)
        if delay < 1:
            raise ValueError(f"delay: found {delay}, must be at least 1")
        self.delay = delay
        self._past: dict[str, dict[str, list[float]]] = {}
        """By action and receiver: what it was given last, the latest at the end."""

    def replace(self, step: int, name: str, values: Values) -> Values:
        past = self._past.setdefault(name, {})
        for receiver, value in values.items():
            past[receiver] = [*past.get(receiver, []), value][-self.delay - 1 :]
        return {receiver: past[receiver][0] for receiver in values}

    def start_client(self, client: Client, server: Server) -> None:
        # A visit depends on weights, client and round alone: what was done at another client is no past of it.
        self._past = {name: past for name, past in self._past.items() if name == PER_NAME}
        super().start_client(client, server)

    def state_dict(self) -> dict[str, Any]:
        return {"method": super().state_dict(), "past": self._past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["method"])
        self._past = state["past"]


class Replay(Control):
    """The actions of another run, in order: where the receivers have other names there, by their places."""

    def take(self, actions: Actions) -> None:
        super().take(actions)
        self._others: dict[str, list[Values]] = {}
        for name, values in self.taken:
            self._others.setdefault(name, []).append(values)
        self._next: dict[str, int] = {}

    def replace(self, step: int, name: str, values: Values) -> Values:
        if name not in self._others:
            raise self._missing(name)
        others = self._others[name]
        place = self._next.get(name, 0)
        self._next[name] = place + 1
        other = others[min(place, len(others) - 1)]
        if other.keys() >= values.keys():
            return {receiver: other[receiver] for receiver in values}
        given = list(other.values())
        return {receiver: given[place % len(given)] for place, receiver in enumerate(values)}

    def state_dict(self) -> dict[str, Any]:
        return {"method": super().state_dict(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["method"])
        self._next = state["next"]


KINDS: dict[str, Callable[..., Control]] = {
    "mean_of": MeanOf,
    "shuffled": Shuffled,
    "delayed": Delayed,
    "replay": Replay,
}
