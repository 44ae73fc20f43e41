"""What the ranks of a trial beside the first one take for an attempt."""

from __future__ import annotations

from typing import Any

from harness.recording.attempts import Attempt
from harness.recording.records import Result, storage


class Following(Attempt):
    """Reads where the trial stands, as the first rank does, and writes nothing: one process alone writes a trial's records."""

    def __enter__(self) -> Following:
        self.state = self._taken_up((self.trial.attempts() or [1])[-1])
        self.folder = self.trial.folder
        with storage(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)  # the first rank may be slower
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing: no lock was taken."""

    def record(self, record: dict[str, Any]) -> None:
        """Nothing: the first rank records."""

    def tell(self, event: str, level: str = "info", **facts: Any) -> None:
        """Nothing: the first rank tells."""

    def keep(self, name: str, content: bytes) -> None:
        """Nothing: the first rank keeps it."""

    def commit(self, step: int, checkpoint: bytes | None = None, best: bytes | None = None) -> None:
        """Nothing: the first rank commits."""

    def finish(self, result: Result, keep_checkpoints: bool = False) -> None:
        """Nothing: the result is the first rank's."""
