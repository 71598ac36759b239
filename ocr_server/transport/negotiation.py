"""Content negotiation by the `Accept` header (RFC 9110, 12.5.1): tells browsers from other clients."""

from __future__ import annotations

PAGE = "/ui/"
"""Path of the web page."""


def prefers_html(accept: str) -> bool:
    """Return whether an `Accept` header names HTML and prefers it to JSON. `*/*` or an empty header does not."""
    wanted: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        wanted[name] = _quality(parameters)
    anything = wanted.get("application/*", wanted.get("*/*", 0.0))
    return wanted.get("text/html", 0.0) > wanted.get("application/json", anything)


def _quality(parameters: list[str]) -> float:
    """Return the `q` parameter of a media range: 1 if it is missing, 0 if it is not a number."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
