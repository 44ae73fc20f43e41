"""`harness doctor` on a machine that is well, and on one that is not; `harness gc` on a folder."""

from pathlib import Path

import pytest
from support import harness

from harness.registry import Registry
from harness.running import doctor


@pytest.mark.slow
def test_a_machine_that_is_well(tmp_path: Path) -> None:
    shown = harness("doctor", "--results", tmp_path)
    assert "wrong" not in shown
    for name in ("versions", "plugins", "results", "gpus", "tracking", "ray", "node"):
        assert f"ok       {name}" in shown or f"warning  {name}" in shown
    assert not list(tmp_path.glob(".doctor-*"))


@pytest.mark.slow
def test_what_is_wrong_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = harness(
        "doctor", "--results", tmp_path / "file" / "r", "--tracking", "http://127.0.0.1:9", status=3, timeout=300
    )
    assert "wrong    results" in shown
    assert "give another folder" in shown
    assert "wrong    tracking" in shown
    assert "that the server runs" in shown
    assert "doctor: a grid would not run as things are" in shown


def test_a_version_out_of_range_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda package: "1.0" if package == "torch" else real(package))
    (finding,) = doctor._versions()
    assert finding.state == "wrong"
    assert "torch 1.0, allowed: " in finding.detail


def test_a_plugin_that_does_not_load_is_a_warning(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    finding = doctor._registered(Registry([broken]))
    assert finding.state == "warning"
    assert "no_such_module" in finding.detail


def test_gc_of_an_empty_folder(tmp_path: Path) -> None:
    assert "everything there is needed" in harness("gc", "--results", tmp_path)
