"""Batches made ahead of time by threads, in an order that does not depend on the threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from harness import Batch
from tasks.data.splits import EpochOrder

WORKERS = min(16, os.cpu_count() or 1)
AHEAD = 2 * WORKERS
"""Batches made in advance where threads make them."""
T = TypeVar("T")
R = TypeVar("R")


def mapped_ahead(function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map` by threads, at most so many results ahead of the one that is taken."""
    queue: deque[Future[R]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for item in items:
            queue.append(pool.submit(function, item))
            if len(queue) > ahead:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()


class Pipeline:
    """The batches of a data set: `make(indices, number)` makes the batch of a number, counted from 0.

    `make` must be a pure function of its two arguments. With `ahead` it runs in threads, for so many batches in advance:
    decoding and image operations let go of Python's lock. What is handed out is the same either way, and so is what
    follows a resume: the state is that behind the batch handed out last, whatever has been made since.
    """

    def __init__(self, order: EpochOrder, make: Callable[[Tensor, int], Batch], ahead: int = 0) -> None:
        self._order, self._make, self._ahead = order, make, ahead
        self._pool: ThreadPoolExecutor | None = None
        self._queue: deque[tuple[dict[str, Any], Future[Batch]]] = deque()
        self._number = 0
        self._state = order.state_dict()

    def next(self) -> Batch:
        """The next batch."""
        if self._ahead:
            while len(self._queue) < self._ahead:
                self._submit()
            self._state, future = self._queue.popleft()
            batch = future.result()
        else:
            indices = self._order.next()
            self._state = self._order.state_dict()
            batch = self._make(indices, self._number)
        self._number += 1
        return batch

    def _submit(self) -> None:
        self._pool = self._pool or ThreadPoolExecutor(WORKERS)
        indices = self._order.next()
        future = self._pool.submit(self._make, indices, self._number + len(self._queue))
        self._queue.append((self._order.state_dict(), future))

    def state_dict(self) -> dict[str, Any]:
        """The order behind the batch handed out last, and its number."""
        return {"order": self._state, "number": self._number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        for _, future in self._queue:
            future.cancel()
        self._queue.clear()
        self._order.load_state_dict(state["order"])
        self._state, self._number = state["order"], state["number"]
