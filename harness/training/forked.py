"""Several ranks on this machine, each in a forked process: for checks of what must hold on every rank."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch.distributed as distributed

from harness.method import Ranks
from harness.training.ranks import DistributedRanks

WAIT = 120.0
"""Seconds after which a rank that has not answered has hung."""


def on_ranks(world: int, work: Callable[[Ranks], str]) -> list[str]:
    """What `work` returns on each of `world` gloo ranks.

    Raises:
        RuntimeError: if a rank raised, with its traceback, or did not answer.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world)]
        ranks = [
            context.Process(target=_rank, args=(index, world, Path(folder) / "rendezvous", work, pipe[1]))
            for index, pipe in enumerate(pipes)
        ]
        for rank in ranks:
            rank.start()
        try:
            return [_answer(index, reader) for index, (reader, _) in enumerate(pipes)]
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def _answer(index: int, reader: Connection) -> str:
    if not reader.poll(WAIT):
        raise RuntimeError(f"rank {index} has not answered for {WAIT:g} seconds")
    ok, text = reader.recv()
    if not ok:
        raise RuntimeError(f"rank {index} raised: {text}")
    return str(text)


def _rank(index: int, world: int, rendezvous: Path, work: Callable[[Ranks], str], writer: Connection) -> None:
    try:
        distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=index, world_size=world)
        answer = True, work(DistributedRanks())
        distributed.barrier()
    except Exception:
        answer = False, traceback.format_exc()
    writer.send(answer)
