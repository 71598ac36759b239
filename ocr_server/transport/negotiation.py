"""Whether a client is a browser that wants a page, by its `Accept` header (RFC 9110, 12.5.1)."""

from __future__ import annotations

PAGE = "/ui/"


def prefers_html(accept: str) -> bool:
    """Whether HTML is named, and wanted more than JSON. `*/*` or no header at all wants no page."""
    wanted: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        wanted[name] = _quality(parameters)
    anything = wanted.get("application/*", wanted.get("*/*", 0.0))
    return wanted.get("text/html", 0.0) > wanted.get("application/json", anything)


def _quality(parameters: list[str]) -> float:
    """1 if there is none; 0 if it can't be read."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
