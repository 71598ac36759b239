"""Pages are set in the fonts that nano/fonts.py names: where there is none of them, nothing can be rendered."""

from __future__ import annotations

from nano.fonts import fonts

try:
    fonts("train")
except RuntimeError:
    collect_ignore = ["test_render.py", "test_train.py"]
