"""Parameters on how tokens are chosen, under the names that OpenAI's APIs and vLLM give them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from ocr_server.dialects.wire import Wire, string_or_list

MAX_STOPS, MAX_STOP_CHARS = 16, 1000
MAX_SCORES_OF_PAGES = 128
"""Maximum number of pages times log probabilities for each token. They are kept until the answer ends."""

Stops = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True), Tag("<list>")],
    Discriminator(string_or_list),
]


class Sampling(Wire):
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    """Sampling temperature. The default is 0 (greedy decoding), so that reading does not depend on chance."""
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    """Sample from the most likely tokens with this total probability. 0 is greedy decoding."""
    stop: Stops | None = None
    """Up to 16 texts that end the answer of a page where they occur, at most 1,000 characters each. They are not part
    of the answer."""
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    """vLLM: sample from the k most likely tokens; 0 or −1 for all tokens."""
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    """vLLM: minimum probability of a token, relative to that of the most likely token."""
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    """vLLM: values above 1 discourage tokens that have already occurred."""

    @field_validator("stop")
    @classmethod
    def _short_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if not all(0 < len(each) <= MAX_STOP_CHARS for each in ([stop] if isinstance(stop, str) else stop or [])):
            raise PydanticCustomError(
                "stop",
                "must be one or up to {stops} texts of at most {most} characters, none of them empty",
                {"stops": MAX_STOPS, "most": MAX_STOP_CHARS},
            )
        return stop

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return not self.temperature or self.top_p == 0

    def sampling(self) -> dict[str, Any]:
        """Return the fields of `Decoding` that these parameters give."""
        return {
            "temperature": 0.0 if self.is_greedy else self.temperature,
            "top_p": None if self.is_greedy else self.top_p,
            "top_k": max(self.top_k or 0, 0),
            "min_p": self.min_p or 0.0,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "stop": tuple(self.stop) if isinstance(self.stop, list) else self.stop,
        }
