"""The web page at `/ui/`: static files, with a content security policy that allows nothing from other origins."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from deepseek_ocr.families import Family

FILES = Path(__file__).resolve().parents[2] / "ui"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The page shows text that the model has read from untrusted documents. No script, style or request in it may run."""

FAMILY_SCRIPT = "family.js"
"""The script that tells the page what the served model has: modes, prompts and labels."""


class WebPage(StaticFiles):
    """The page's files. Browsers revalidate their copies on every visit."""

    def __init__(self, family: Family) -> None:
        super().__init__(directory=FILES, html=True)
        known = {name: getattr(family, name) for name in ("prompts", "labels", "figure_label", "box_scale")}
        known["modes"] = {name: asdict(mode) for name, mode in family.modes.items()}
        self._family = f"export const FAMILY = {json.dumps(known)};\n"

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path == FAMILY_SCRIPT:
            response = Response(self._family, media_type="text/javascript")
        else:
            response = await super().get_response(path, scope)
        response.headers["content-security-policy"] = POLICY
        response.headers["cache-control"] = "no-cache"
        return response
