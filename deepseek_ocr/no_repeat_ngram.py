"""The no-repeat n-gram guard, for both of vLLM's model runners.

DeepSeek-OCR is decoded greedily, with a guard against loops: a token is banned if it would complete an n-gram that
already occurs in the last `window_size` output tokens. Table cells repeat naturally, so `<td>` and `</td>` are exempt.
The published settings for single pictures are n = 30 and window = 90.

The settings that a request can choose are in `guard.py`.
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
    """Return the guard's class for the model runner of this configuration, as `module:class`."""
    runner_class = NoRepeatNGramV2 if vllm_config.use_v2_model_runner else NoRepeatNGramV1
    return f"{__name__}:{runner_class.__name__}"


class Window:
    """The n-grams in the window of an output, updated as the output grows. A step costs the same for any window size.

    Let the prefix be the last n − 1 tokens. For each i in [max(0, L − window), L − n], if output[i : i + n − 1]
    equals the prefix, then output[i + n − 1] is banned.
    """

    def __init__(self, guard: Guard, exempt: frozenset[int]) -> None:
        """Args:
        guard: Settings with `ngram_size` > 0.
        exempt: Tokens that are never banned.
        """
        self._n = guard.ngram_size
        self._most = guard.window_size - self._n + 1
        """Number of n-grams that fit in the window."""
        self._exempt = exempt
        self._length = 0
        """Length of the output at the last call."""
        self._prefixes: deque[tuple[int, ...]] = deque()
        """All but the last token of each n-gram in the window, oldest first."""
        self._last: dict[tuple[int, ...], deque[int]] = {}
        """Prefix → the tokens that followed it, oldest first."""

    def banned(self, output: Sequence[int]) -> set[int]:
        """Return the tokens that must not follow `output`, which must continue the output of the last call."""
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
    """The guard for model runner V1 (used by the CPU build, and if Triton is missing)."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.default_exempt = _default_exempt(vllm_config)
        self.rows: dict[int, tuple[Window, list[int]]] = {}
        """Row of the batch → window and output of each request with a guard. vLLM appends to the output."""

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
    """The guard for model runner V2. It processes all rows together on the device, without synchronising with it."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        if vllm_config.speculative_config is not None:
            raise ValueError("the no-repeat n-gram guard does not support speculative decoding")
        self.req_states = req_states
        self.default_exempt = _default_exempt(vllm_config)
        slots, device = req_states.max_num_reqs, req_states.device
        # The settings of each request slot: on the host for shapes, on the device for the arithmetic.
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

        # The last tokens of every row. They begin before the window, since the n-grams that end in it do.
        columns = torch.arange(most_window + most_n - 1, device=logits.device)
        places = end - len(columns) + columns
        tokens = self.req_states.all_token_ids.gpu[slots.unsqueeze(-1), places.clamp(min=0)].long()

        # ngrams[r, j] ends with last[r, j]; its first n − 1 tokens are compared with the end of the row.
        ngrams = tokens.unfold(1, most_n, 1)
        last, last_places = ngrams[..., -1], places[:, most_n - 1 :]
        prefix = tokens[:, None, len(columns) - most_n + 1 :]
        counts = torch.arange(most_n - 1, device=logits.device) >= most_n - n  # [rows, most_n − 1]
        equal = ((ngrams[..., :-1] == prefix) | ~counts[:, None]).all(-1)
        exempt = (last.unsqueeze(-1) == self.exempt[slots].unsqueeze(1)).any(-1)
        banned = equal & ~exempt & (n > 0) & (last_places >= start + n - 1)
        # Adding −inf or 0 gives the same result for equal tokens in any order, unlike assigning.
        return logits.scatter_add_(1, last, torch.where(banned, -torch.inf, 0.0).to(logits.dtype))


def _guard(params: SamplingParams) -> Guard:
    """Return the guard that a request asks for. Raises ValueError if its settings are not allowed."""
    return Guard.from_args(params.extra_args or {})


def _default_exempt(vllm_config: VllmConfig) -> tuple[int, ...]:
    """Return the token ids of `EXEMPT_TOKENS`."""
    tokenizer: Any = cached_tokenizer_from_config(vllm_config.model_config)
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[token] for token in EXEMPT_TOKENS if token in vocabulary)
