"""Puts the project's folder on the path: an editable install is asked last, when `docs/methods` has passed for the package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
