"""Files that a plan depends on beside its code: a cached plan holds as long as they are as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_watched: list[dict[str, str]] = []


def mark(path: Path) -> str:
    """What tells a file from another one in its place, without reading it; empty where there is none.

    >>> mark(Path("no such file"))
    ''
    """
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def depends_on(paths: Iterable[Path]) -> None:
    """Says that what is being planned depends on files or folders: called where a task makes a digest of its data."""
    for seen in _watched:
        seen.update({str(path): mark(path) for path in paths})


@contextmanager
def watching() -> Iterator[Mapping[str, str]]:
    """Notes the files that are named by `depends_on` meanwhile, with their marks."""
    seen: dict[str, str] = {}
    _watched.append(seen)
    try:
        yield seen
    finally:
        _watched.remove(seen)


def unchanged(seen: Mapping[str, str]) -> bool:
    """Whether all of these files are as they were."""
    return all(mark(Path(path)) == known for path, known in seen.items())
