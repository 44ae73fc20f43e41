"""Pictures of a report or of MLflow's pages, as a phone and a desktop show them, light and dark, taken with headless Chromium.

    python docs/screenshots.py results/grids/NAME/report.html --out pictures
    python docs/screenshots.py http://127.0.0.1:5000/#/experiments/1 --out pictures

Chromium is looked for as chromium, chromium-browser and google-chrome (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

WIDTHS = {"phone": 390, "desktop": 1280}
SCHEMES = {"light": "1", "dark": "0"}
"""Blink's numbers for prefers-color-scheme."""


def browser() -> str:
    """The path of a browser.

    Raises:
        SystemExit: if there is none.
    """
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise SystemExit("found no chromium, chromium-browser or google-chrome; Debian: apt-get install chromium")


def command(folder: Path, scheme: str, wait: int) -> list[str]:
    """Chromium without a window, with a profile of its own."""
    return [
        browser(),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"),
        *("--disable-dev-shm-usage", "--force-device-scale-factor=1", f"--virtual-time-budget={wait}"),
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
    ]


def shoot(address: str, file: Path, width: int, height: int, scheme: str, wait: int = 4000) -> None:
    """One picture. The page lies in a frame of the width: a window cannot be as narrow as a phone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = folder / "frame.html"
        style = f"border:0;width:{width}px;height:{height}px"
        frame.write_text(
            f'<meta name="color-scheme" content="light dark"><body style="margin:0">'
            f'<iframe style="{style}" src="{html.escape(address)}"></iframe>'
        )
        target = frame.as_uri() if address.startswith("file:") else address
        size = f"--window-size={max(width, 500)},{height}"
        subprocess.run(
            [*command(folder, scheme, wait), size, f"--screenshot={file}", target],
            check=True,
            timeout=120,
            capture_output=True,
        )


def to_pdf(address: str, file: Path) -> None:
    """The page as it is printed."""
    with tempfile.TemporaryDirectory() as name:
        asked = [*command(Path(name), "light", 4000), f"--print-to-pdf={file}", "--no-pdf-header-footer", address]
        subprocess.run(asked, check=True, timeout=120, capture_output=True)


def pictures(address: str, out: Path, height: int) -> Iterator[Path]:
    """All four pictures of a page."""
    for device, width in WIDTHS.items():
        for scheme in SCHEMES:
            file = out / f"{device}-{scheme}.png"
            shoot(address, file, width, height, scheme)
            yield file


def main() -> None:
    """Takes the pictures of one page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("page", help="a report.html, or an address")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--height", type=int, default=6000)
    parser.add_argument("--print", action="store_true", help="also as a PDF")
    given = parser.parse_args()
    address = given.page if "://" in given.page else Path(given.page).resolve().as_uri()
    given.out.mkdir(parents=True, exist_ok=True)
    for file in pictures(address, given.out.resolve(), given.height):
        sys.stdout.write(f"{file}\n")
    if given.print:
        to_pdf(address, given.out.resolve() / "print.pdf")
        sys.stdout.write(f"{given.out.resolve() / 'print.pdf'}\n")


if __name__ == "__main__":
    main()
