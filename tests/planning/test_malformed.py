"""Each malformed grid is answered with one line, most of them before anything heavy is imported."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from planning.malformed import GOOD, MALFORMED, Malformed

from harness.planning.errors import GridError
from harness.planning.grid import load_grid
from harness.planning.plan import build_plan
from harness.registry import Registry


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.name)
def test_each_malformed_grid_gets_one_message_that_names_file_and_field(
    case: Malformed, tmp_path: Path, registry: Registry
) -> None:
    file = case.write(tmp_path)
    with pytest.raises(GridError) as caught:
        build_plan(load_grid(file, case.overrides, registry), registry)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.field == case.field
    assert case.file in caught.value.file
    for part in case.says:
        assert part in message, message


def test_the_grid_that_they_are_made_of_is_good(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "grid.yaml").write_text(GOOD)
    assert len(build_plan(load_grid(tmp_path / "grid.yaml", [], registry), registry).trials) == 1


LIGHT = """
    import sys, time

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "numpy", "ray", "mlflow"):
                raise ImportError(name + " is blocked")

    sys.meta_path.insert(0, Blocked())
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from harness.planning.errors import GridError
    from harness.planning.grid import load_grid
    from harness.planning.plan import build_plan
    from harness.registry import Registry
    from planning.malformed import MALFORMED

    registry = Registry()
    for number, case in enumerate(case for case in MALFORMED if not case.heavy):
        folder = Path(sys.argv[2]) / str(number)
        folder.mkdir()
        started = time.process_time()
        try:
            build_plan(load_grid(case.write(folder), case.overrides, registry), registry)
        except GridError as error:
            if "blocked" in str(error) or time.process_time() - started > 1.5:
                print(case.name, error)
"""


def test_what_needs_no_author_is_answered_at_once_and_without_torch(tmp_path: Path, cache: Path) -> None:
    Registry()  # fills the index of the registries in this test's cache
    (tmp_path / "grids").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIGHT), str(Path(__file__).parent.parent), str(tmp_path / "grids")],
        capture_output=True,
        text=True,
        env=os.environ | {"HARNESS_CACHE": str(cache)},
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
