"""The pictures of a grid are made, and show something."""

from pathlib import Path

import pytest
import screenshots
from browser import Browser, BrowserError, found_browser
from PIL import Image
from support import write_grid

SMALL = """
name: small
tasks: [digits/mlp]
methods: [adamw, sgd]
seeds: 2
recipes: [{set: {steps: 30}}]
claims: [{better: adamw, than: sgd}]
"""

pytestmark = pytest.mark.skipif(found_browser() is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a grid that was run and reported."""
    folder = tmp_path_factory.mktemp("small")
    assert screenshots.prepared(str(write_grid(folder, SMALL)), folder / "results") == "small"
    return folder / "results"


@pytest.mark.slow
def test_the_pictures_of_a_grid(small: Path, tmp_path: Path) -> None:
    made = {file.stem: file for file in screenshots.pictures(small, "small", tmp_path / "pictures", 3000)}
    reports = {f"report-{device}-{scheme}" for device in ("phone", "desktop") for scheme in ("light", "dark")}
    assert set(made) == reports | {"experiment", "grouped", "charts", "parent", "artifact", "trial"}
    shown = {name: Image.open(file).convert("RGB") for name, file in made.items()}
    counts = {name: picture.getcolors(1 << 24) or [] for name, picture in shown.items()}
    assert [name for name, colours in counts.items() if len(colours) < 500] == [], "blank"
    assert shown["report-phone-dark"].width == 390 and shown["report-desktop-light"].width == 1280
    light, dark = (max(counts[f"report-phone-{scheme}"])[1] for scheme in ("light", "dark"))
    assert min(light) > 240 and max(dark) < 40


@pytest.mark.slow
def test_a_report_is_no_wider_than_a_phone(small: Path) -> None:
    with Browser() as browser:
        browser.look(390, 800)
        browser.open((small / "grids" / "small" / "report.html").as_uri())
        assert browser.value("document.documentElement.scrollWidth") == 390


@pytest.mark.slow
def test_the_browser_says_what_went_wrong() -> None:
    with Browser(seconds=5) as browser:
        browser.open("data:text/html,<button onclick='document.title = event.clientX > 0'>b</button>")
        browser.click("document.querySelector('button')")
        assert browser.value("document.title") == "true"
        with pytest.raises(BrowserError, match="waited for false"):
            browser.wait("false")
        with pytest.raises(BrowserError, match="nowhere is not defined"):
            browser.value("nowhere")
