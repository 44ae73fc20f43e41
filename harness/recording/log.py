"""The structured log of an attempt: what the harness itself knows of its course, one JSON object a line.

What a trial prints is beside it as plain text. Both are there to be read by people, and nothing is computed from them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LOG, OUTPUT = "log.jsonl", "log.txt"
"""The files of an attempt's folder: the structured log, and what the trial printed."""

MOST = 256 << 10
"""Bytes of a log, beyond which only the end is added, and of the texts that are shown."""

LONGEST = 2000
"""Characters of a text in an event."""


def tell(folder: Path, event: str, level: str = "info", **facts: Any) -> None:
    """Adds an event with the time. A folder that cannot be written is noticed by the next commit."""
    path = folder / LOG
    short = {name: fact[:LONGEST] if isinstance(fact, str) else fact for name, fact in facts.items()}
    line = json.dumps({"time": time.time(), "level": level, "event": event} | short) + "\n"
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
        if event == "ended" or file.tell() + len(line) <= MOST:
            file.write(line)


def last(paths: Iterable[Path]) -> str:
    """The texts of files, one after the other: what there is room for, from the end, in whole lines where there are any."""
    content = b""
    for path in paths:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MOST - 1))
            content += file.read()
    if len(content) > MOST:
        content = content[-MOST:]
        content = content.partition(b"\n")[2] or content
    return content.decode(errors="replace")
