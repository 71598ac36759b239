"""`blocks`: markdown, and in addition the blocks of each page with their bounding boxes."""

from __future__ import annotations

from ocr_server.output.artifacts import Artifacts
from ocr_server.output.formats.format import Format
from ocr_server.output.formats.markdown import markdown_text

BLOCKS = Format(
    name="blocks",
    media_type="application/json",
    description="Markdown, and in addition the blocks of each page with their bounding boxes.",
    artifacts=Artifacts(blocks=True),
    text=markdown_text,
    options=frozenset({"table_format", "include_figures", "confidence"}),
)
