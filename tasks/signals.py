"""What PPO shows of itself while it learns: activation patterns of actor and critic, and returns so far."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor, nn

from harness.activations import hamming, observe, oui, pack

NETWORKS = ("actor", "critic")


class PatternSignals:
    """OUI and sign flips of actor and critic on a fixed batch, measured once an update.

    `oui_actor` and `oui_critic` are means over hidden layers of the OUI in its batch form; `flip_rate` is the share of
    (sample, unit) signs, over both networks, that differ from those one update before.

    Source: arXiv 2603.09950, whose abstract names the quantities; what they are exactly is this project's reading.
    """

    def __init__(self, inputs: Tensor) -> None:
        self._inputs = inputs
        self._packed: dict[str, Tensor] = {}
        self.values: dict[str, float] = {}

    def measure(self, model: nn.Module) -> None:
        """Looks at the model; call it once an update."""
        with observe(model) as seen:
            model(self._inputs)
        packed = {gate: pack(z) for gate, z in seen.items()}
        self.values = {}
        for network in NETWORKS:
            found = [oui(z.reshape(len(z), -1)) for gate, z in seen.items() if network in gate.split(".")]
            if found:
                self.values[f"oui_{network}"] = sum(found) / len(found)
        if self._packed and packed.keys() == self._packed.keys():
            flipped = sum(int(hamming(packed[gate], self._packed[gate]).sum()) for gate in packed)
            self.values["flip_rate"] = flipped / sum(z.numel() for z in seen.values())
        self._packed = packed

    def state_dict(self) -> dict[str, Any]:
        return {"packed": self._packed, "values": dict(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._packed = {gate: tensor.to(self._inputs.device) for gate, tensor in state["packed"].items()}
        self.values = dict(state["values"])


class Returns:
    """Returns of training episodes: their mean over the last 100, and over the last part of the steps so far."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=100)
        self._ends: deque[tuple[int, float]] = deque()

    def add(self, env_step: int, total: float) -> None:
        """An episode has ended."""
        self._recent.append(total)
        self._ends.append((env_step, total))

    def values(self, env_steps: int) -> dict[str, float]:
        """`return`; `return_last_fifth` and `return_last_tenth`, over episodes that ended in that part of the steps."""
        while self._ends and self._ends[0][0] <= 0.8 * env_steps:
            self._ends.popleft()
        parts = {
            "return": list(self._recent),
            "return_last_fifth": [total for _, total in self._ends],
            "return_last_tenth": [total for step, total in self._ends if step > 0.9 * env_steps],
        }
        return {name: sum(totals) / len(totals) for name, totals in parts.items() if totals}

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "ends": [list(end) for end in self._ends]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.extend(state["recent"])
        self._ends.extend((step, total) for step, total in state["ends"])
