"""`harness trial`: one trial in the foreground, with nothing else around it."""

from __future__ import annotations
