"""Hooks for schemathesis. They keep the answers to valid generated requests short."""

from __future__ import annotations

from typing import Any

import schemathesis

MAX_TOKENS = 2


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Limit the length of the answer, unless the generated limit is invalid."""
    if isinstance(body, dict) and "messages" in body:
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int) and body[name] > MAX_TOKENS:
                body[name] = MAX_TOKENS
        if not {"max_tokens", "max_completion_tokens"} & body.keys():
            body["max_tokens"] = MAX_TOKENS
    return body
