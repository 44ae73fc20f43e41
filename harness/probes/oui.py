"""The OUI of every gate, in both of its definitions, with what fair coins would have beside it."""

from __future__ import annotations

from typing import Literal

import torch

from harness.activations import (
    channels_apart,
    coin_flips,
    coin_flips_pair,
    feeding,
    observe,
    one_position,
    oui,
    oui_pair,
)
from harness.method import State
from harness.probe import Probe
from harness.registry import register_probe

PAIRED = 8
"""Samples whose pairs count: 28 of them, as in the released code."""


@register_probe("oui")
class OUI(Probe):
    """Overfitting-Underfitting Indicator of each gate and their mean: `probe/oui/…`, or `probe/oui_pair/…` in its pair form.

    The two forms are different quantities. `null` is the value of fair coins, which depends on the number of samples (of
    units, in the pair form): compare values at equal numbers, or divided by it.

    Options: `form`; `on` a fixed batch, or the training batch as in the paper of 2025; `samples`, the first ones of that
    batch (0: all, but 8 in the pair form, which have 28 pairs, all of which count); `units`, all of a gate's (each position
    of a map is a unit), or the channels at one random position per sample, as OUIDecay's code takes them.
    """

    needs = frozenset({"gates"})
    source = "batch form: arXiv 2605.10161, 2605.11571; pair form: arXiv 2504.17160"

    form: Literal["batch", "pair"] = "batch"
    on: Literal["fixed", "train"] = "fixed"
    samples: int = 0
    units: Literal["all", "one_position"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 0 or self.samples == 1:
            raise ValueError(f"samples: found {self.samples}, must be 0 (the default) or at least 2")
        if self.form == "pair" and self.samples > 64:
            raise ValueError(
                f"samples: found {self.samples}, allowed: at most 64 in the pair form, whose cost is quadratic"
            )

    def after_step(self, state: State) -> dict[str, float]:
        samples = self.samples or (PAIRED if self.form == "pair" else None)
        with observe(state.model) as seen:
            if self.on == "fixed":
                state.model(state.workload.probe_inputs[:samples])
            else:
                batch = {name: tensor[:samples] for name, tensor in state.batches[-1].items()}
                state.workload.objective(state.model, batch)
        places = state.streams.fresh(f"probe/oui/{state.step}")
        if self.units == "all":
            layers = {gate: z.reshape(len(z), -1) for gate, z in seen.items()}
        else:
            makers = feeding(state.model)
            layers = {gate: one_position(channels_apart(z, makers[gate]), places) for gate, z in seen.items()}
        name = "oui" if self.form == "batch" else "oui_pair"
        values, nulls = {}, []
        for gate, z in layers.items():
            if self.form == "batch":
                values[gate], null = oui(z), coin_flips(len(z))
            else:
                values[gate], null = (
                    oui_pair(z, torch.combinations(torch.arange(len(z)), 2)),
                    coin_flips_pair(z.shape[1]),
                )
            nulls.append(null)
        means = {"mean": sum(values.values()) / len(values), "null": sum(nulls) / len(nulls)}
        return {f"{name}/{key}": value for key, value in (values | means).items()}
