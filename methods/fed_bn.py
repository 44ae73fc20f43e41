"""FedBN: batch normalisation stays with the clients."""

from __future__ import annotations

from torch import Tensor, nn

from harness import Client, Method, Server, register_method


def batch_norm_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Scale, shift and running statistics of every BatchNorm layer, by name in the model.

    >>> sorted(batch_norm_tensors(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
    ['1.bias', '1.running_mean', '1.running_var', '1.weight']
    """
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            names = {f"{prefix}.{name}".lstrip("."): tensor.detach() for name, tensor in own}
            found |= {name: tensor for name, tensor in names.items() if tensor.is_floating_point()}
    return found


@register_method("fed_bn")
class FedBN(Method):
    """Each client keeps the scale, shift and running statistics of its BatchNorm layers from visit to visit.

    The server's splits need one model: its BatchNorm layers are the average of the participants', used for the scores and
    by clients on their first visit. On a model without BatchNorm it is federated averaging.
    """

    needs = frozenset({"clients"})
    source = "Li et al. 2021, arXiv 2102.07623"

    def start_client(self, client: Client, server: Server) -> None:
        for name, tensor in batch_norm_tensors(client.state.model).items():
            if f"bn/{name}" in client.memory:
                tensor.copy_(client.memory[f"bn/{name}"])

    def finish_client(self, client: Client) -> dict[str, Tensor]:
        found = batch_norm_tensors(client.state.model)
        client.memory |= {f"bn/{name}": tensor.clone() for name, tensor in found.items()}
        return {}
