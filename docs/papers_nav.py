"""A hook of MkDocs: the pages of the papers that are there, under the summary in the navigation."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """Adds docs/papers/*.md to the section Papers."""
    (papers,) = (entry["Papers"] for entry in config["nav"] if "Papers" in entry)
    pages = sorted(Path(config["docs_dir"], "papers").glob("*.md"))
    papers.extend(f"papers/{page.name}" for page in pages if f"papers/{page.name}" not in papers)
