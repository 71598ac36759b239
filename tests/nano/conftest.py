"""Skip the tests that render pages where none of the fonts listed in nano/fonts.py is installed."""

from __future__ import annotations

from nano.fonts import fonts

try:
    fonts("train")
except RuntimeError:
    collect_ignore = ["test_render.py", "test_train.py"]
