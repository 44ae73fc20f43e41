"""Data-parallel ranks: gradients are averaged explicitly and the model is never wrapped."""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from harness.method import Ranks
from harness.task import Batch


class DistributedRanks(Ranks):
    """The ranks of the default process group. Every rank draws the same global batch and takes its own part of it."""

    def __init__(self) -> None:
        self.index = distributed.get_rank()
        self.world = distributed.get_world_size()

    def reduce(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.world

    def shard(self, batch: Batch) -> Batch:
        """This rank's slice of every tensor.

        Raises:
            ValueError: if the batch does not divide evenly, for then means of means would not be the mean.
        """
        for name, tensor in batch.items():
            if len(tensor) % self.world:
                raise ValueError(f"batch: {name}: found {len(tensor)}, must be a multiple of the {self.world} ranks")
        return {name: tensor.tensor_split(self.world)[self.index] for name, tensor in batch.items()}

    def average_gradients(self, model: nn.Module, share: float) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat *= share
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()
