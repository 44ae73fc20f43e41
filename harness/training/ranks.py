"""Data-parallel ranks: gradients are averaged explicitly and the model is never wrapped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from harness.method import Ranks, Shared
from harness.resources import Seat
from harness.task import Batch
from harness.training.state import mapped, pack, unpack

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others: the first may be evaluating. One that has ended is noticed at once."""


class PeerLost(RuntimeError):
    """Another rank is gone or does not answer. The trial goes on from its last commit another time."""


def loopback() -> str:
    """The interface of a machine that leads to itself."""
    return {"darwin": "lo0"}.get(sys.platform, "lo")


def join(seat: Seat) -> DistributedRanks:
    """Takes a seat, once all the others are taken.

    Raises:
        PeerLost: if they are not within `PATIENCE`.
    """
    backend = "nccl" if seat.device == "cuda" else "gloo"
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # else a lost rank aborts this process, as an error of its own would
    if seat.address.startswith("127."):  # all on this machine: gloo would listen where its host name points
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback()
    try:
        distributed.init_process_group(
            backend, f"tcp://{seat.address}", PATIENCE, world_size=seat.world, rank=seat.index
        )
    except (RuntimeError, ValueError) as error:  # a store that nobody joins, or a port that was taken meanwhile
        raise PeerLost(f"rank {seat.index} of {seat.world} met nobody at {seat.address} ({error})") from error
    return DistributedRanks()


class DistributedRanks(Ranks):
    """The ranks of the default process group. Every rank draws the same global batch and takes its own part of it."""

    def __init__(self) -> None:
        self.index = distributed.get_rank()
        self.world = distributed.get_world_size()
        self.device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")

    def reduce(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        self._add_up(total)
        return total / self.world

    def share(self, owner: int, content: Shared) -> Shared:
        """Copied exactly, and laid out alike on every rank, so that what all compute of it has the same bits.

        Raises:
            PeerLost: if a rank is gone.
        """
        mine = self.index == owner
        content = mapped(content, self._dense) if mine else {}
        outline = self._bytes(owner, pack(mapped(content, lambda tensor: tensor.to("meta"))) if mine else b"")
        if not mine:
            content = mapped(unpack(outline), lambda tensor: torch.empty_like(tensor, device=self.device))
        mapped(content, lambda tensor: self._send(owner, tensor))
        return content

    def _dense(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().to(self.device)
        return tensor if _flat(tensor).is_contiguous() else tensor.contiguous()

    def _bytes(self, owner: int, content: bytes) -> bytes:
        size = self._send(owner, torch.tensor([len(content)], device=self.device))
        values = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.index == owner:
            values.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        return self._send(owner, values).cpu().numpy().tobytes()

    def _send(self, owner: int, tensor: Tensor) -> Tensor:
        """Puts the owner's values in the place of every rank's."""
        self._exchange(distributed.broadcast, _flat(tensor), owner)
        return tensor

    def _add_up(self, values: Tensor) -> None:
        """Puts the sum over the ranks in the place of `values`: the same bits on every rank.

        Raises:
            PeerLost: if a rank is gone.
        """
        self._exchange(distributed.all_reduce, values)

    def _exchange(self, operation: Callable[..., Any], *arguments: Any) -> None:
        try:
            operation(*arguments)
        except RuntimeError as error:
            raise PeerLost(f"rank {self.index} has lost another rank ({error})") from error

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
        self._add_up(flat)
        flat *= share
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()


def _flat(tensor: Tensor) -> Tensor:
    """The tensor with its dimensions in the order in which they lie in memory: contiguous, if there are no gaps."""
    return tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
