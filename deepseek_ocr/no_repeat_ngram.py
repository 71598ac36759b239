"""The no-repeat n-gram guard, for both of vLLM's model runners.

DeepSeek-OCR is decoded greedily with a guard against loops: a token is banned when it would complete
an n-gram that already stands in the last `window_size` output tokens. Table cells repeat by nature,
so `<td>` and `</td>` are exempt. The published settings are n = 30, window = 90 for single pictures.

`guard.py` has the settings that a request can choose.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcRequestState,
)
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsProcessor as LogitsProcessorV2,
)

from deepseek_ocr.guard import MAX_WHITELIST, Guard

if TYPE_CHECKING:
    from vllm.config import VllmConfig

EXEMPT_TOKENS = ("<td>", "</td>")


def guard_for(vllm_config: VllmConfig) -> str:
    """The class that the model runner of this configuration takes, as `module:class`."""
    runner_class = NoRepeatNGramV2 if vllm_config.use_v2_model_runner else NoRepeatNGramV1
    return f"{__name__}:{runner_class.__name__}"


class Window:
    """The n-grams among the last tokens of one output, kept as it grows: a step costs the same whatever the window.

    With the last n − 1 tokens as the prefix: for each i in [max(0, L − window), L − n], if output[i : i + n − 1]
    equals the prefix, output[i + n − 1] must not come next.
    """

    def __init__(self, guard: Guard, exempt: frozenset[int]) -> None:
        """`guard` has an n; `exempt` are never banned."""
        self._n = guard.ngram_size
        self._most = guard.window_size - self._n + 1
        """n-grams that fit into the window."""
        self._exempt = exempt
        self._length = 0
        """Of the output, when it was last seen."""
        self._prefixes: deque[tuple[int, ...]] = deque()
        """Of each n-gram in the window, all tokens but the last; the oldest first."""
        self._last: dict[tuple[int, ...], deque[int]] = {}
        """Prefix → the tokens that came after it, the oldest first."""

    def banned(self, output: Sequence[int]) -> set[int]:
        """Tokens that must not follow `output`, which is what it was at the last call, or longer."""
        n, length = self._n, len(output)
        for last in range(max(self._length, length - self._most, n - 1), length):
            prefix = tuple(output[last - n + 1 : last])
            self._prefixes.append(prefix)
            self._last.setdefault(prefix, deque()).append(output[last])
            if len(self._prefixes) > self._most:
                self._forget(self._prefixes.popleft())
        self._length = length
        found = self._last.get(tuple(output[length - n + 1 :])) if length >= n else None
        return set(found) - self._exempt if found else set()

    def _forget(self, prefix: tuple[int, ...]) -> None:
        followers = self._last[prefix]
        followers.popleft()
        if not followers:
            del self._last[prefix]


class NoRepeatNGramV1(LogitsProcessor):
    """For runner V1 (the CPU build, and where Triton is missing)."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.default_exempt = _default_exempt(vllm_config)
        self.rows: dict[int, tuple[Window, list[int]]] = {}
        """The requests that have a guard, each with its output, to which vLLM adds."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        _guard(sampling_params)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, self._row)

    def _row(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> tuple[Window, list[int]] | None:
        guard = _guard(params)
        if guard.ngram_size == 0:
            return None
        exempt = self.default_exempt if guard.whitelist_token_ids is None else guard.whitelist_token_ids
        return Window(guard, frozenset(exempt)), output

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        banned = [(row, token) for row, (window, output) in self.rows.items() for token in window.banned(output)]
        if banned:
            rows, tokens = zip(*banned, strict=True)
            logits[list(rows), list(tokens)] = -torch.inf
        return logits


class NoRepeatNGramV2(LogitsProcessorV2):
    """For runner V2: all rows at once on the device, without waiting for it."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        if vllm_config.speculative_config is not None:
            raise ValueError("the no-repeat n-gram guard does not support speculative decoding")
        self.req_states = req_states
        self.default_exempt = _default_exempt(vllm_config)
        slots, device = req_states.max_num_reqs, req_states.device
        # Settings for each request slot: on the host for shapes, on the device for the arithmetic.
        self.sizes = np.zeros((slots, 2), dtype=np.int64)
        self.device_sizes = torch.zeros((slots, 2), dtype=torch.int64, device=device)
        self.exempt = torch.full((slots, MAX_WHITELIST), -1, dtype=torch.int64, device=device)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        _guard(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        guard = _guard(sampling_params)
        self.sizes[req_idx] = guard.ngram_size, guard.window_size
        self.device_sizes[req_idx, 0] = guard.ngram_size
        self.device_sizes[req_idx, 1] = guard.window_size
        exempt = self.default_exempt if guard.whitelist_token_ids is None else guard.whitelist_token_ids
        self.exempt[req_idx] = -1
        for place, token in enumerate(exempt):
            self.exempt[req_idx, place] = token
        return guard.ngram_size > 0

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        sizes = self.sizes[ctx.idx_mapping_np]
        most_n, most_window = int(sizes[:, 0].max()), int(sizes[sizes[:, 0] > 0, 1].max(initial=0))
        if most_n == 0:
            return logits
        slots = ctx.expanded_idx_mapping.long()
        n, window = self.device_sizes[slots].unsqueeze(-1).unbind(1)  # [rows, 1] each
        end = (ctx.pos.long() + 1).unsqueeze(-1)
        start = torch.maximum(self.req_states.prompt_len.gpu[slots].long().unsqueeze(-1), end - window)

        # The last tokens of every row, with room before the window for the n-grams that end in it.
        columns = torch.arange(most_window + most_n - 1, device=logits.device)
        places = end - len(columns) + columns
        tokens = self.req_states.all_token_ids.gpu[slots.unsqueeze(-1), places.clamp(min=0)].long()

        # ngrams[r, j] ends with last[r, j]; the first n − 1 of it are held against the row's end.
        ngrams = tokens.unfold(1, most_n, 1)
        last, last_places = ngrams[..., -1], places[:, most_n - 1 :]
        prefix = tokens[:, None, len(columns) - most_n + 1 :]
        counts = torch.arange(most_n - 1, device=logits.device) >= most_n - n  # [rows, most_n − 1]
        equal = ((ngrams[..., :-1] == prefix) | ~counts[:, None]).all(-1)
        exempt = (last.unsqueeze(-1) == self.exempt[slots].unsqueeze(1)).any(-1)
        banned = equal & ~exempt & (n > 0) & (last_places >= start + n - 1)
        # Adding −inf or 0 is the same whichever order equal tokens come in, unlike assigning.
        return logits.scatter_add_(1, last, torch.where(banned, -torch.inf, 0.0).to(logits.dtype))


def _guard(params: SamplingParams) -> Guard:
    """The guard that a request asks for. Raises ValueError: its settings are not allowed."""
    return Guard.from_args(params.extra_args or {})


def _default_exempt(vllm_config: VllmConfig) -> tuple[int, ...]:
    tokenizer: Any = cached_tokenizer_from_config(vllm_config.model_config)
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[token] for token in EXEMPT_TOKENS if token in vocabulary)
