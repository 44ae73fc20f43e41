"""The OUI of every gate on the task's fixed probe batch."""

from harness.activations import oui, pre_activations
from harness.method import State
from harness.probe import Probe
from harness.registry import register_probe


@register_probe("oui")
class OUI(Probe):
    """Overfitting-Underfitting Indicator, batch form, over all units of each gate: `probe/oui/<gate>` and their mean."""

    needs = frozenset({"gates"})
    source = "arXiv 2605.10161, 2605.11571"

    def after_step(self, state: State) -> dict[str, float]:
        values = {
            f"oui/{gate}": oui(z) for gate, z in pre_activations(state.model, state.workload.probe_inputs).items()
        }
        return values | {"oui/mean": sum(values.values()) / len(values)}
