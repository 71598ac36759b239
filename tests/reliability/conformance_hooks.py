"""Loaded by schemathesis: keeps generated requests that are right cheap to answer."""

from __future__ import annotations

from typing import Any

import schemathesis

MOST_TOKENS = 2


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """An answer of few tokens, where the number asked for is one."""
    if isinstance(body, dict) and "messages" in body:
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int) and body[name] > MOST_TOKENS:
                body[name] = MOST_TOKENS
        if not {"max_tokens", "max_completion_tokens"} & body.keys():
            body["max_tokens"] = MOST_TOKENS
    return body
