"""Names of the random streams, and the seed of each: plain integers, so that a grid is read without torch."""

from __future__ import annotations

import hashlib

NAMES = ("split", "partition", "init", "data", "environment", "evaluation", "method", "probe")


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of a trial: the first bytes of SHA-256 of both.

    >>> derive(0, "init") == derive(0, "init"), derive(0, "init") == derive(0, "data")
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
