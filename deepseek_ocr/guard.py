"""Settings of the no-repeat n-gram guard, without the code that enforces them (`no_repeat_ngram`).

A request sets the guard through `SamplingParams.extra_args` (vLLM's own server: `vllm_xargs`): `ngram_size`
(0 turns it off), `window_size` and `whitelist_token_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NGRAM_SIZE = 30
WINDOW_SIZE = 90
MAX_NGRAM_SIZE = 128
MAX_WINDOW_SIZE = 8192
"""Bounds the cost of a step on runner V2: one comparison for each token in the window of a request."""
MAX_WHITELIST = 32


@dataclass(frozen=True)
class Guard:
    """The guard's settings for one request.

    Raises:
        ValueError: A value is not allowed. The message starts with the name of the field.
    """

    ngram_size: int = NGRAM_SIZE
    """n; 0 turns the guard off."""
    window_size: int = WINDOW_SIZE
    """Number of last output tokens that are searched."""
    whitelist_token_ids: tuple[int, ...] | None = None
    """Tokens that are never banned; None stands for `<td>` and `</td>`."""

    def __post_init__(self) -> None:
        for name, least, most in (("ngram_size", 0, MAX_NGRAM_SIZE), ("window_size", 1, MAX_WINDOW_SIZE)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} must be an integer from {least} to {most}, not {value!r}")
        if self.ngram_size > self.window_size:
            raise ValueError(f"ngram_size must not exceed window_size ({self.window_size}), not {self.ngram_size}")
        exempt = self.whitelist_token_ids
        if exempt is not None and (
            len(exempt) > MAX_WHITELIST
            or not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in exempt)
        ):
            raise ValueError(f"whitelist_token_ids must be a list of at most {MAX_WHITELIST} token ids")

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Guard:
        """Read the guard from a request's `extra_args`; other keys are ignored."""
        exempt = args.get("whitelist_token_ids")
        if exempt is not None and not isinstance(exempt, list | tuple | set | frozenset):
            raise ValueError("whitelist_token_ids must be a list of token ids")
        return cls(
            ngram_size=args.get("ngram_size", NGRAM_SIZE),
            window_size=args.get("window_size", WINDOW_SIZE),
            whitelist_token_ids=None if exempt is None else tuple(exempt),
        )

    def to_args(self) -> dict[str, Any]:
        """The `extra_args` that ask for this guard."""
        args: dict[str, Any] = {"ngram_size": self.ngram_size, "window_size": self.window_size}
        if self.whitelist_token_ids is not None:
            args["whitelist_token_ids"] = list(self.whitelist_token_ids)
        return args
