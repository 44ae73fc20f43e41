"""The data folder, what is missing from it, and digests of what is there.

The folder is `HARNESS_DATA`, or `~/.cache/harness`. Nothing is ever downloaded from here: `python -m tasks.data NAME` is
the one command that does, and it does nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from harness.inputs import depends_on, mark


class MissingData(ValueError):
    """A data set that is not in the data folder. The text says where it was looked for and how to get it."""


def folder() -> Path:
    """The data folder: `HARNESS_DATA`, or `~/.cache/harness`."""
    return Path(os.environ.get("HARNESS_DATA") or Path.home() / ".cache" / "harness").expanduser()


def cache() -> Path:
    """Where digests and decoded images are kept: `data` in `HARNESS_CACHE`, or in `~/.cache/harness`. Safe to delete."""
    return Path(os.environ.get("HARNESS_CACHE") or Path.home() / ".cache" / "harness").expanduser() / "data"


def require(name: str, paths: Iterable[Path], get: str) -> list[Path]:
    """The paths, if all of them exist.

    Raises:
        MissingData: if one does not.
    """
    paths = list(paths)
    absent = [path for path in paths if not path.exists()]
    if absent:
        place = "HARNESS_DATA" if os.environ.get("HARNESS_DATA") else "HARNESS_DATA is not set"
        raise MissingData(
            f"data set {name}: found no {absent[0].relative_to(folder())} in {folder()} ({place}); to get it: {get}"
        )
    return paths


def digest(paths: Iterable[Path]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the contents of files, in the order given.

    Contents are read once: afterwards a file is known by its size, inode and times of change, and read again as soon as
    one of them differs.
    """
    paths = list(paths)
    depends_on(paths)
    file = cache() / "digests.json"
    try:
        known: dict[str, list[str]] = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    sha, changed = hashlib.sha256(), False
    for path in paths:
        now = mark(path)
        entry = known.get(str(path))
        if entry is None or entry[0] != now:
            with path.open("rb") as content:
                entry = known[str(path)] = [now, hashlib.file_digest(content, "sha256").hexdigest()]
            changed = True
        sha.update(f"{path.name} {entry[1]}\n".encode())
    if changed:
        write_atomically(file, json.dumps(known).encode())
    return sha.hexdigest()[:16]


def listing_digest(root: Path) -> str:
    """A digest of the names and sizes of all files below a folder, for folders too large to be read for it.

    An image replaced by one of the same size is not noticed. A cached plan holds until an image is added or taken away: the
    times of so many files would take as long as the digest.
    """
    sha, below = hashlib.sha256(), sorted(root.rglob("*"))
    depends_on([root, *(path for path in below if path.is_dir())])
    for path in below:
        if path.is_file():
            sha.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    return sha.hexdigest()[:16]


def write_atomically(file: Path, content: bytes) -> None:
    """Writes a file of the cache; a cache that cannot be written costs time, nothing else."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=file.parent, delete=False) as temporary:
            temporary.write(content)
        Path(temporary.name).replace(file)
    except OSError:
        return
