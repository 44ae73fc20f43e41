"""The command line: its commands lie in `harness.commands`, in the order of the way from an idea to its report.

Exit status: 0 all done; 1 some trial failed, ran out of memory or time, was lost or blocked; 2 bad input, nothing
started; 3 infrastructure; 130 interrupted.
"""

import sys

from harness.commands import looking, running, stored
from harness.commands.shared import app

__all__ = ["app", "looking", "main", "running", "stored"]


def main() -> None:
    """The entry point of the `harness` command: whatever it reads, a damaged results folder is told in one line."""
    try:
        app()
    except RuntimeError as error:
        from harness.recording.records import RecordsError

        if not isinstance(error, RecordsError):
            raise
        print(error, file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
